"""What is decided about a manifest when every row of it is known: duplicates, rare scripts, groups, splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.clean import DUPLICATE, CleanRules
from voxtrain.manifest.corpus import Corpus, duplicates, no_duplicates, rare_scripts
from voxtrain.manifest.evidence import RARE_SCRIPT, Evidence
from voxtrain.manifest.judged import WRITTEN
from voxtrain.manifest.row import Row
from voxtrain.manifest.rules import Finding
from voxtrain.manifest.splitting.group import Grouping, Groups
from voxtrain.manifest.splitting.placing import NO_SPLIT
from voxtrain.manifest.splitting.split import GroupedSplit, SplitGroups, assign_groups
from voxtrain.manifest.spool import Spool
from voxtrain.manifest.transcript import WORD_ERROR_RATE, TranscriptCheck
from voxtrain.progress import told
from voxtrain.run_folder import SPLITS

GROUPS_SHOWN = 5


def report_names(clean: CleanRules) -> tuple[str, ...]:
    """Every rule that only reports, in the order of the bits of `reported`."""
    return (*(rule.name for rule in clean.reports()), RARE_SCRIPT)


def decided(corpus: Corpus, spool: Spool, clean: CleanRules, listen: TranscriptCheck | None) -> Evidence:
    """Everything that speaks against a row or is remarkable about it; marks the rows of `corpus` too.

    listen: hears every row that nothing else speaks against.
    """
    rows, names = corpus.rows, clean.rule_names()
    found = duplicates(corpus, spool) if clean.duplicates else no_duplicates(corpus)
    if clean.duplicates:
        rows["fired"][found.stays >= 0] |= np.uint64(1 << names.index(DUPLICATE))
    later = {}
    if listen is not None:
        later[WORD_ERROR_RATE] = _misheard(corpus, spool, listen)
        rows["fired"][list(later[WORD_ERROR_RATE])] |= np.uint64(1 << names.index(WORD_ERROR_RATE))
    rare = {}
    if clean.rare_script_share is not None:
        shares = rare_scripts(corpus, clean.rare_script_share)
        rare = {
            name: Finding(f"{name}: {share:.2%} of the rows", clean.rare_script_share) for name, share in shares.items()
        }
        written = np.isin(rows["script"], [WRITTEN.index(name) for name in rare])
        rows["reported"][written & corpus.kept()] |= np.uint64(1 << report_names(clean).index(RARE_SCRIPT))
    return Evidence(corpus, spool, found, later, rare)


def _misheard(corpus: Corpus, spool: Spool, listen: TranscriptCheck) -> dict[int, Finding]:
    """What the speech recogniser has against the rows that are kept so far, by place."""
    places = np.flatnonzero(corpus.kept())
    found = {}
    for place, record in told(zip(places.tolist(), spool.records(places), strict=True), len(places), "listening"):
        finding = listen.finding(Row.from_record(record | {"group": ""}))
        if finding is not None:
            found[place] = finding
    return found


@dataclass(frozen=True, slots=True)
class Split:
    """Where the kept rows lie."""

    groups: Groups
    sizes: SplitGroups
    places: npt.NDArray[np.uint8]  # [N] in SPLITS; NO_SPLIT: the row is rejected

    def summary(self) -> dict[str, dict[str, Any]]:
        """Groups, rows and seconds of each split."""
        return {
            name: {
                "groups": int((self.sizes.splits == code).sum()),
                "rows": int(self.sizes.rows[self.sizes.splits == code].sum()),
                "seconds": int(self.sizes.microseconds[self.sizes.splits == code].sum()) / 1e6,
            }
            for code, name in enumerate(SPLITS)
        }


def split_of(corpus: Corpus, grouping: Grouping, settings: GroupedSplit, seed: int) -> Split:
    """The split of the kept rows. Raises InputError where there can be none."""
    kept, groups = corpus.kept(), corpus.groups(grouping)
    codes, count = groups.codes[kept], len(groups.names)
    rows = np.bincount(codes, minlength=count).astype(np.int64)
    # exact: sums of whole numbers under 2^53, which is 285 years of audio
    lengths = np.rint(np.bincount(codes, corpus.microseconds()[kept], minlength=count)).astype(np.int64)
    if (rows > 0).sum() < len(settings.wanted()):
        names = sorted(groups.names[code] for code in np.flatnonzero(rows))
        raise InputError(_too_few_groups(grouping, names, settings))
    sizes = assign_groups(groups, rows, lengths, settings, seed)
    places = np.full(len(kept), NO_SPLIT, dtype=np.uint8)
    places[kept] = sizes.splits[codes]
    return Split(groups, sizes, places)


def _too_few_groups(grouping: Grouping, groups: list[str], split: GroupedSplit) -> Fault:
    needed = split.wanted()
    lie = f"{len(groups)} group{'' if len(groups) == 1 else 's'} ({', '.join(groups[:GROUPS_SHOWN])})"
    what = f"the kept rows lie in {lie}; {', '.join(needed)} need {len(needed)}, since a group is never divided"
    remedy = "add recordings, or group by a finer column"
    if "test" in needed and len(groups) == len(needed) - 1:
        remedy += ", or do without a test split: split.test_share=0"
    group_by = grouping.value if isinstance(grouping.value, str) else ", ".join(grouping.value)
    return Fault(f"data.group_by = {group_by}", what, remedy)
