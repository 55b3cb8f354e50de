"""AudioVAE latents of audio, computed once: the encoder is frozen, so training never needs to run it again.

An entry is named by what the audio holds, by how much of its tail silence stays, by the encoder and by this code's
version; runs, splits and processes share it (latent_store.py). Each entry that a run will use is verified first; one
that is not whole is made anew, never used.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from voxtrain.data.audio import SAMPLE_RATE_HZ, unusable
from voxtrain.data.clip import Clip, audio_of, heard, key_of, read_ahead
from voxtrain.data.fingerprint import Fingerprints
from voxtrain.data.latent_store import Entry, LatentStore, Made, today
from voxtrain.fault import Fault, InputError, RunFailed
from voxtrain.manifest.row import Row
from voxtrain.progress import told

VERSION = 2
"""Raised when audio is read, encoded or written otherwise: entries of another version are not looked at."""

SHOWN_FAULTS = 10
ENTRIES_AT_A_TIME = 64  # verified by one task of a thread
BETWEEN_COMMITS_S = 1.0  # of clips that were encoded: what a process that is killed loses

Item = TypeVar("Item")


class LatentCache:
    """Latents of audio files, [A, P, D] float32 each.

    folder: where entries are kept, for every encoder and every run.
    vae_key: stands for the encoder.
    encode: wave [samples] float32 at 16 kHz -> [A, P, D]. Called only for what is missing, and one clip at a time,
    since a batch need not give the same bits.
    keep_tail_s: of the silence at the end of each clip, how much stays; null: all of it.
    """

    def __init__(
        self, folder: Path, vae_key: str, encode: Callable[[np.ndarray], Tensor], keep_tail_s: float | None
    ) -> None:
        owner = f"{vae_key}_v{VERSION}"
        self._folder = folder / owner
        self._store = LatentStore(self._folder, owner)
        self._encode, self._keep_tail_s = encode, keep_tail_s
        self._fingerprints = Fingerprints(folder / "fingerprints.sqlite")
        self._keys: dict[Path, bytes] = {}  # of audio that was looked up: training opens no audio file
        self._entries: dict[bytes, Entry] = {}  # verified

    def ensure(self, rows: Sequence[Row], progress: bool) -> None:
        """Verify the latents of all audio and reference audio of `rows`, and compute those that are missing.

        No audio file is opened whose samples the audit has hashed and whose latents are there. What is encoded is kept
        at once, so that an interrupted call goes on where it was, and processes that do the same share the work.
        progress: say on stderr how far it is. Raises InputError with every clip that cannot be encoded or has changed
        since the audit, or when latents cannot be kept.
        """
        self._ensure(audio_of(rows), progress)

    def latents(self, audio: Path) -> Tensor:
        """[A, P, D] float32, after `ensure`; of other audio they are looked for, or computed, now.

        Raises RunFailed when the file no longer holds what `ensure` found there, InputError as `ensure` does.
        """
        entry = self._entry(audio)
        latents = self._store.read(self._keys[audio], entry)
        if latents is None:
            raise RunFailed(
                f"The latents in {self._folder} were changed while they were in use, those of {audio} for one.\n"
                "Go on with `python -m voxtrain resume=RUN`, or judge again: what is broken is made anew."
            )
        return torch.from_numpy(latents)

    def positions(self, audio: Path) -> int:
        """A, the number of patches. Raises InputError as `ensure` does."""
        return self._entry(audio).shape[0]

    def seconds(self, audio: Path) -> float:
        """How long the audio is that was encoded: without what was cut of its tail. Raises InputError likewise."""
        return self._entry(audio).samples / SAMPLE_RATE_HZ

    def _entry(self, audio: Path) -> Entry:
        key = self._keys.get(audio)
        if key is None or key not in self._entries:
            self._ensure({audio: None}, progress=False)
        return self._entries[self._keys[audio]]

    def _ensure(self, audio: Mapping[Path, str | None], progress: bool) -> None:
        try:
            clips, faults = self._named(audio, progress)
        finally:
            with suppress(OSError):
                self._fingerprints.save()
        self._keys |= {clip.path: clip.key for clip in clips}
        wanted = {clip.key: clip for clip in clips}
        spoiled = self._verify(wanted, progress)
        missing = [clip for clip in wanted.values() if clip.key not in self._entries]
        faults |= self._encode_all(missing, spoiled, progress)
        with suppress(OSError, sqlite3.Error):  # in a folder that may only be read, nobody prunes either
            self._store.touch(key for key in wanted if key in self._entries and self._entries[key].day < today())
        if faults:
            raise InputError(*_first([fault for path in audio for fault in faults.get(path, ())]))

    def _named(
        self, audio: Mapping[Path, str | None], progress: bool
    ) -> tuple[list[Clip], dict[Path, tuple[Fault, ...]]]:
        """Clips with the names of their latents, and the faults of files that have no name because of them."""
        clips = [
            Clip(path, samples, key_of("samples", samples, self._keep_tail_s))
            for path, samples in audio.items()
            if samples is not None
        ]
        faults: dict[Path, tuple[Fault, ...]] = {}
        unhashed = [path for path, samples in audio.items() if samples is None]
        for path in _told(unhashed, len(unhashed), "hashing audio", progress):
            try:
                clips.append(Clip(path, None, key_of("file", self._fingerprints.of(path), self._keep_tail_s)))
            except OSError as error:
                faults[path] = (unusable(path, f"it cannot be read: {error.strerror}"),)
        return clips, faults

    def _verify(self, keys: Iterable[bytes], progress: bool) -> dict[bytes, Entry]:
        """Take up the entries of `keys` that are whole; returns those that are not."""
        with self._as_fault():
            found = sorted(self._store.find(list(keys)).items(), key=lambda item: item[1].offset)
        parts = [found[start : start + ENTRIES_AT_A_TIME] for start in range(0, len(found), ENTRIES_AT_A_TIME)]
        spoiled: dict[bytes, Entry] = {}
        with ThreadPoolExecutor() as pool:
            whole = pool.map(lambda part: [self._store.is_whole(key, entry) for key, entry in part], parts)
            checked = _told(zip(parts, whole, strict=True), len(parts), "checking audio latents", progress)
            for part, verdicts in checked:
                for (key, entry), is_whole in zip(part, verdicts, strict=True):
                    (self._entries if is_whole else spoiled)[key] = entry
        for key in spoiled:
            self._entries.pop(key, None)
        return spoiled

    def _encode_all(
        self, clips: list[Clip], spoiled: Mapping[bytes, Entry], progress: bool
    ) -> dict[Path, tuple[Fault, ...]]:
        """Encode and keep; in an order of this process's own, so that others doing the same do other clips first."""
        random.Random().shuffle(clips)
        faults: dict[Path, tuple[Fault, ...]] = {}
        made: list[Made] = []
        kept_s = time.monotonic()
        waves = read_ahead(clips, lambda clip: heard(clip, self._keep_tail_s))
        try:
            for clip, wave in _told(waves, len(clips), "encoding audio", progress):
                if self._is_there_now(clip, spoiled):
                    continue
                try:
                    made.append(self._made(clip, wave))
                except InputError as error:
                    faults[clip.path] = error.faults
                if time.monotonic() - kept_s > BETWEEN_COMMITS_S:
                    batch, made, kept_s = made, [], time.monotonic()
                    self._keep(batch, spoiled)
        finally:
            waves.close()
            self._keep(made, spoiled)
        return faults

    def _is_there_now(self, clip: Clip, spoiled: Mapping[bytes, Entry]) -> bool:
        """Whether another process has made it meanwhile."""
        with self._as_fault():
            entry = self._store.find([clip.key]).get(clip.key)
        if entry is None or entry.lies_where(spoiled.get(clip.key)) or not self._store.is_whole(clip.key, entry):
            return False
        self._entries[clip.key] = entry
        return True

    def _made(self, clip: Clip, wave: np.ndarray | InputError) -> Made:
        if isinstance(wave, InputError):
            raise wave
        latents = self._encode(wave).to("cpu", torch.float32).contiguous()
        if latents.ndim != 3 or 0 in latents.shape or not torch.isfinite(latents).all():
            what = f"its latents are not finite numbers [A, P, D]: {tuple(latents.shape)}"
            raise InputError(unusable(clip.path, what))
        return Made(clip.key, latents.numpy(), len(wave))

    def _keep(self, made: Sequence[Made], spoiled: Mapping[bytes, Entry]) -> None:
        if not made:
            return
        with self._as_fault():
            for key, entry in self._store.add(made, spoiled).items():
                if not self._store.is_whole(key, entry):
                    raise OSError("what was written reads back otherwise")
                self._entries[key] = entry

    @contextmanager
    def _as_fault(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            what = f"latents cannot be kept: {getattr(error, 'strerror', None) or error}"
            remedy = "set data.cache_dir to a folder with room that can be written; what was encoded so far is kept"
            raise InputError(Fault(f"data.cache_dir: {self._folder}", what, remedy)) from None


def _told(items: Iterable[Item], count: int, what: str, progress: bool) -> Iterable[Item]:
    return told(items, count, what) if progress else items


def _first(faults: Sequence[Fault]) -> list[Fault]:
    shown = list(faults[:SHOWN_FAULTS])
    if len(faults) > SHOWN_FAULTS:
        what = f"{len(faults) - SHOWN_FAULTS} more clips cannot be encoded"
        shown.append(Fault("audio", what, "mend them, or leave their rows out of the manifest"))
    return shown
