"""The ledger balances on any manifest, and no decision depends on the order of the rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import clean_rules, row

from voxtrain.manifest.audit import contamination, ledger, ledger_text, length
from voxtrain.manifest.clean import judge
from voxtrain.manifest.header import NO_FILE, Header
from voxtrain.manifest.row import Row

CLEAN = clean_rules()
PATHS = [Path(f"/clips/{number}.wav") for number in range(6)]

headers = st.one_of(
    st.just(NO_FILE),
    st.just(Header(None, missing=False, reason="damaged")),
    st.floats(0.001, 60.0).map(lambda seconds: Header(seconds, missing=False, reason="")),
)
rows = st.lists(
    st.builds(
        lambda audio, text, group, reference, odd: row(
            audio=audio, text="" if odd else text, group=group, ref_audio=reference, odd=odd
        ),
        st.sampled_from(PATHS),
        st.sampled_from(["Good morning.", "Good evening.", " ", "Thanks for watching!", "?"]),
        st.sampled_from(["one", "two", ""]),
        st.one_of(st.none(), st.sampled_from(PATHS)),
        st.sampled_from([(), (), (), (("text", None),), (("text", "17"),), (("audio", None),)]),
    ),
    min_size=1,
    max_size=25,
).map(lambda made: [numbered(one, place) for place, one in enumerate(made)])
soundings = st.fixed_dictionaries(dict.fromkeys(PATHS, headers))


def numbered(one: Row, place: int) -> Row:
    """An id that some rows share, as those made from path and text do."""
    return row(
        **{name: getattr(one, name) for name in ("audio", "text", "group", "ref_audio", "odd")},
        line=place + 1,
        id=f"{one.audio.stem}-{one.text}",
    )


@settings(deadline=None)
@given(rows, soundings)
def test_the_ledger_balances(made, sounds) -> None:
    verdicts = judge(made, sounds, CLEAN)
    audit = ledger(verdicts, CLEAN.rule_names())
    rejects = audit["rejects_by_rule"]
    assert audit["rows_in"] == len(made) == audit["rows_kept"] + sum(rejects.values())
    assert sum(v.reject is None for v in verdicts) == audit["rows_kept"]
    # sums of whole microseconds, each rounded once to a float: 1e-9 is far under one of them
    seconds = audit["seconds_kept"] + sum(audit["seconds_rejected_by_rule"].values())
    assert audit["seconds_in"] == pytest.approx(seconds, abs=1e-9)
    for rule, count in rejects.items():
        fired = audit["fired"].get(rule, {}).get(rule, 0)
        assert fired == sum(rule in v.fired() for v in verdicts) >= count
    for one, together in audit["fired"].items():
        for other, count in together.items():
            assert count == audit["fired"][other][one] <= audit["fired"][one][one]


@settings(deadline=None)
@given(rows, soundings, st.randoms(use_true_random=False))
def test_the_order_decides_nothing(made: list[Row], sounds: dict[Path, Header], chance: random.Random) -> None:
    shuffled = [*made]
    chance.shuffle(shuffled)
    first = {v.row.line: v.fired() for v in judge(made, sounds, CLEAN)}
    assert first == {v.row.line: v.fired() for v in judge(shuffled, sounds, CLEAN)}


@settings(deadline=None)
@given(rows, soundings, st.randoms(use_true_random=False))
def test_what_stays_is_the_same_when_lines_are_numbered_anew(made, sounds, chance) -> None:
    """Lines decide only between rows that are equal in all else."""
    lines = [one.line for one in made]
    chance.shuffle(lines)
    anew = [row(**{n: getattr(one, n) for n in ("id", "audio", "text", "group", "ref_audio", "odd")}, line=line)
            for one, line in zip(made, lines, strict=True)]  # fmt: skip

    def kept(rows_in: list[Row]) -> list[tuple[str, str, str]]:
        verdicts = judge(rows_in, sounds, CLEAN)
        return sorted((v.row.id, v.row.group, str(v.row.ref_audio)) for v in verdicts if v.reject is None)

    assert kept(made) == kept(anew)


@settings(deadline=None)
@given(rows, soundings)
def test_each_clip_and_text_is_kept_once_at_most_and_once_where_a_row_is_fit(made, sounds) -> None:
    verdicts = judge(made, sounds, CLEAN)
    kept = [(v.row.audio, v.row.text) for v in verdicts if v.reject is None]
    assert len(kept) == len(set(kept))
    fit = {(v.row.audio, v.row.text) for v in verdicts if set(v.fired()) <= {"duplicate"}}
    assert set(kept) == fit


def test_seconds_are_sums_of_whole_microseconds() -> None:
    """So they balance, and no order of the rows changes the last digit."""
    lengths_s = [1 / 3, 1 / 7, 200 / 13]
    sounds = {path: Header(seconds, missing=False, reason="") for path, seconds in zip(PATHS, lengths_s, strict=False)}
    made = [row(id=path.stem, audio=path) for path in sounds]
    kept = [ledger(judge(rows, sounds, CLEAN), CLEAN.rule_names())["seconds_kept"] for rows in (made, made[::-1])]
    assert kept == [(333_333 + 142_857 + 15_384_615) / 1e6] * 2


def test_contamination_is_that_of_the_published_run() -> None:
    assert contamination(0.31, 8) == pytest.approx(0.9486, abs=5e-5)
    assert (contamination(0.0, 8), contamination(1.0, 8)) == (0.0, 1.0)


def test_the_text_shows_what_fired_and_an_example() -> None:
    made = [
        row(id="a", audio=PATHS[0], line=1),
        row(id="b", audio=PATHS[1], text=" ", line=2),
        row(id="c", audio=PATHS[2], text="Thanks for watching!", line=3),
    ]
    sounds = {path: Header(20.0, missing=False, reason="") for path in PATHS}
    audit = ledger(judge(made, sounds, CLEAN), CLEAN.rule_names(), rows_per_step=4)
    audit |= {"manifest": "rows.jsonl", "splits": None, "warnings": ["mind the gap"]}
    text = ledger_text(audit).splitlines()
    assert text[0] == "Ledger of rows.jsonl"
    assert [line.split()[0] for line in text[2:6]] == ["rows", "empty_text", "boilerplate", "kept"]
    assert "too_long" not in "\n".join(text)
    assert "line 3: 'Thanks for watching!'" in text[4]
    assert "20.0 s" in text[4]
    assert text[-2].startswith("With the rejected rows left in, 99% of the steps of 4 rows")
    assert text[-1] == "Note: mind the gap"


def test_lengths_have_the_unit_that_suits_them() -> None:
    assert [length(seconds) for seconds in (0.3, 59.94, 90, 3599, 7200)] == [
        "0.3 s",
        "59.9 s",
        "1.5 min",
        "60.0 min",
        "2.00 h",
    ]
