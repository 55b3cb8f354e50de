"""The data of a run as Lightning asks for it: rows prepared, latents at hand, one optimizer step a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from voxtrain.batch import StepBatch
from voxtrain.data.latents import LatentCache
from voxtrain.data.packing import PackedRow, pack_row, position_count
from voxtrain.data.source import Source
from voxtrain.data.steps import StepPlan, Steps
from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.prepare import prepare, read_split
from voxtrain.manifest.row import Row
from voxtrain.manifest.splitting.certificate import read_certificate
from voxtrain.manifest.splitting.split import GroupedSplit
from voxtrain.run_folder import SPLITS, DataFolder

SHOWN_ROWS = 10


class SpeechDataModule(pl.LightningDataModule):
    """Manifest to steps.

    folder: where the prepared rows are, or will be. first_step: updates that were done before this sitting.
    tokenize: text -> token ids. encode: wave [samples] float32 at 16 kHz -> latents [A, P, D]; called only for audio
    whose latents are in no cache. vae_key: stands for `encode`, or gives that when latents are first needed.
    rank, ranks: of the processes that share every step, which this is.
    """

    def __init__(
        self,
        *,
        source: Source,
        clean: CleanRules,
        split: GroupedSplit,
        seed: int,
        batch_size: int,
        grad_accum: int,
        max_positions: int | None,
        first_step: int,
        total_steps: int,
        folder: DataFolder,
        tokenize: Callable[[str], list[int]],
        encode: Callable[[np.ndarray], Tensor],
        vae_key: str | Callable[[], str],
        cfg_rate: float,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self._source, self._clean, self._split, self._folder = source, clean, split, folder
        self._plan = StepPlan(seed, batch_size, grad_accum, max_positions, cfg_rate, rank, ranks)
        self._first_step, self._total_steps = first_step, total_steps
        self._tokenize, self._encode, self._vae_key = tokenize, encode, vae_key
        self._cache: LatentCache | None = None
        self._tokens: dict[str, list[int]] = {}  # of every kept row, by id
        self._positions: dict[str, int] = {}  # likewise
        self._rows: dict[str, list[Row]] = {}  # of every split

    def prepare_data(self) -> None:
        """Audit, clean and split the manifest into the folder, where that is not done yet.

        Raises InputError when the manifest cannot be used, or is another than the one that the folder was made from.
        """
        manifest = self._source.manifest_path()
        recorded = _recorded_manifest(self._folder)
        if recorded is not None:
            if manifest.is_file() and _sha256(manifest) != recorded:
                what = f"it has changed since {self._folder.root} was made from it"
                remedy = "start a new run, or restore the manifest: rows may not change within a run"
                raise InputError(Fault(str(manifest), what, remedy))
            if self._first_step > 0:  # the rows of a run that goes on stay as they are, even if rules were improved
                return
        prepare(
            manifest,
            self._source.columns,
            self._source.group_by,
            self._clean,
            self._split,
            self._plan.seed,
            self._folder,
            self._source.sound_memory(),
            rows_per_step=self._plan.rows,
            force_write=False,
        )

    def setup(self, stage: str) -> None:
        """Bring latents and tokens of all kept rows to hand; a second call does nothing.

        Raises InputError without a sound leakage certificate, and with the rows that cannot be encoded, have changed
        since the audit, or do not fit under `max_positions`.
        """
        if self._cache is not None:
            return
        read_certificate(self._folder)
        self._rows = {name: read_split(self._folder, name) for name in SPLITS}
        kept = [row for rows in self._rows.values() for row in rows]
        key = self._vae_key if isinstance(self._vae_key, str) else self._vae_key()
        cache = LatentCache(self._source.latent_folder(), key, self._encode, self._clean.trim_tail_silence)
        cache.ensure(kept, progress=True)
        for name, rows in self._rows.items():  # what was cut of a tail is not heard
            self._rows[name] = [replace(row, duration_s=cache.seconds(row.audio)) for row in rows]
        self._tokens = {row.id: self._tokenize(row.text) for row in kept}
        self._positions = {row.id: _positions(row, len(self._tokens[row.id]), cache) for row in kept}
        self._refuse_long(kept)
        self._cache = cache

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """One batch for each step from first_step + 1 on, made in this process: its parts are small and cached."""
        return DataLoader(self.steps(), batch_size=None, num_workers=0)

    def steps(self) -> Steps:
        """The steps that remain."""
        return Steps(self._rows["train"], self.pack, self._plan, self._first_step, self._total_steps)

    def longest_step(self, step: int) -> StepBatch:
        """Step number `step` as it would be of the longest training rows, after `setup`."""
        longest_first = sorted(self._rows["train"], key=lambda row: (-self._positions[row.id], row.id))
        return self.steps().of_rows(step, longest_first[: self._plan.rows])

    def rows(self, split: str) -> Sequence[Row]:
        """The kept rows of one of `SPLITS`, after `setup`."""
        return self._rows[split]

    def validation_rows(self) -> list[PackedRow]:
        """The held-out rows, after `setup`."""
        return [self.pack(row) for row in self._rows["validation"]]

    def pack(self, row: Row) -> PackedRow:
        """The layout of one kept row, after `setup`; latents are read from the cache and verified each time."""
        assert self._cache is not None, "setup comes first"
        reference = None if row.ref_audio is None else self._cache.latents(row.ref_audio)
        return pack_row(row.id, self._tokens[row.id], self._cache.latents(row.audio), reference)

    def positions(self, row: Row) -> int:
        """T of a kept row, after `setup`."""
        return self._positions[row.id]

    def _refuse_long(self, rows: Sequence[Row]) -> None:
        most = self._plan.max_positions
        if most is None:
            return
        long = sorted((row for row in rows if self._positions[row.id] > most), key=lambda row: -self._positions[row.id])
        if not long:
            return
        named = "; ".join(f"{row.id} (line {row.line}): {self._positions[row.id]}" for row in long[:SHOWN_ROWS])
        more = f"; and {len(long) - SHOWN_ROWS} more" if len(long) > SHOWN_ROWS else ""
        what = f"{len(long)} kept rows have more positions, and a row is never cut: {named}{more}"
        longest = self._positions[long[0].id]
        remedy = f"memory.max_positions={longest} holds the longest; or reject long rows by clean.max_seconds"
        raise InputError(Fault(f"memory.max_positions = {most}", what, remedy))


def _positions(row: Row, tokens: int, cache: LatentCache) -> int:
    reference = None if row.ref_audio is None else cache.positions(row.ref_audio)
    return position_count(tokens, cache.positions(row.audio), reference)


def _recorded_manifest(folder: DataFolder) -> str | None:
    """The hash of the manifest that a complete folder was made from."""
    try:
        return str(read_json(folder.audit)["manifest_sha256"])
    except (OSError, ValueError, KeyError, TypeError):  # `prepare` then makes it anew
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
