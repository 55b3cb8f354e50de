"""AudioVAE latents of audio, computed once: the encoder is frozen, so training never needs to run it again.

An entry is named by what the audio file holds, by the encoder and by this code's version; runs and splits share it.
It is complete or absent, and carries a checksum: one that is corrupt or foreign is made anew, never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from voxtrain.data.audio import read_wave
from voxtrain.data.fingerprint import Fingerprints
from voxtrain.durable import write_whole
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.progress import told
from voxtrain.manifest.row import Row

VERSION = 1
"""Raised when audio is read, encoded or written otherwise: entries of another version are not looked at."""

SHOWN_FAULTS = 10


class LatentCache:
    """Latents of audio files, [A, P, D] float32 each.

    folder: where entries are kept, for every encoder and every run.
    vae_key: stands for the encoder.
    encode: wave [samples] float32 at 16 kHz -> [A, P, D]. Called only for what is missing, and one clip at a time,
    since a batch need not give the same bits.
    """

    def __init__(self, folder: Path, vae_key: str, encode: Callable[[np.ndarray], Tensor]) -> None:
        self._folder = folder / f"{vae_key}_v{VERSION}"
        self._encode = encode
        self._fingerprints = Fingerprints(folder / "fingerprints.json")
        self._hashes: dict[Path, str] = {}  # of audio that was looked up: training opens no audio file
        self._positions: dict[Path, int] = {}

    def ensure(self, rows: Sequence[Row], progress: bool) -> None:
        """Verify the latents of all audio and reference audio of `rows`, and compute those that are missing.

        Entries are written as they are made, so an interrupted call goes on where it was.
        progress: say on stderr how far it is. Raises InputError with every clip that cannot be encoded.
        """
        paths = list(dict.fromkeys(path for row in rows for path in (row.audio, row.ref_audio) if path is not None))
        faults: list[Fault] = []
        try:
            missing = [path for path in _told(paths, "checking audio latents", progress) if self._stored(path) is None]
            for path in _told(missing, "encoding audio", progress):
                try:
                    latents = self._encoded(path)
                except InputError as error:
                    faults += error.faults
                else:
                    self._store(path, latents)
        finally:
            self._save_fingerprints()
        if faults:
            raise InputError(*_first(faults))

    def latents(self, audio: Path) -> Tensor:
        """[A, P, D] float32, computed where they are missing. Raises InputError when the audio cannot be encoded."""
        stored = self._stored(audio)
        return self._store(audio, self._encoded(audio)) if stored is None else stored

    def positions(self, audio: Path) -> int:
        """A, the number of patches. Raises InputError when the audio cannot be encoded."""
        return self._positions[audio] if audio in self._positions else len(self.latents(audio))

    def _stored(self, audio: Path) -> Tensor | None:
        """What the cache holds; None where it holds nothing that can be used, or where there is no such audio."""
        try:
            if audio not in self._hashes:
                self._hashes[audio] = self._fingerprints.of(audio)
            found = load(self._entry(audio).read_bytes())
        except (OSError, SafetensorError):
            return None
        latents, checksum = found.get("latents"), found.get("checksum")
        if latents is None or checksum is None or latents.dtype != torch.float32:
            return None
        if not torch.equal(checksum, self._checksum(audio, latents)):
            return None
        self._positions[audio] = len(latents)
        return latents

    def _encoded(self, audio: Path) -> Tensor:
        """Fresh latents of what the file holds now."""
        try:
            self._hashes[audio] = self._fingerprints.of(audio)
        except OSError as error:
            raise InputError(_unusable(audio, f"it cannot be read: {error.strerror}")) from None
        latents = self._encode(read_wave(audio)).to("cpu", torch.float32).contiguous()
        if latents.ndim != 3 or not torch.isfinite(latents).all():
            raise InputError(_unusable(audio, f"its latents are not finite numbers [A, P, D]: {tuple(latents.shape)}"))
        return latents

    def _store(self, audio: Path, latents: Tensor) -> Tensor:
        content = save({"latents": latents, "checksum": self._checksum(audio, latents)})
        try:
            write_whole(self._entry(audio), content)
        except OSError as error:
            where = f"data.cache_dir: {self._folder}"
            remedy = "set data.cache_dir to a folder with room that can be written; what was encoded so far is kept"
            raise InputError(Fault(where, f"latents cannot be written: {error.strerror}", remedy)) from None
        self._positions[audio] = len(latents)
        return latents

    def _entry(self, audio: Path) -> Path:
        name = self._hashes[audio]
        return self._folder / name[:2] / f"{name}.safetensors"

    def _checksum(self, audio: Path, latents: Tensor) -> Tensor:
        """[32] uint8: SHA-256 of what the entry is for and of all that it holds."""
        name = f"{self._folder.name} {self._hashes[audio]} {tuple(latents.shape)}"
        digest = hashlib.sha256(name.encode() + latents.numpy().tobytes()).digest()
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def _save_fingerprints(self) -> None:
        with suppress(OSError):  # files are hashed again next time; latents that cannot be stored are a fault
            self._fingerprints.save()


def _told(paths: Sequence[Path], what: str, progress: bool) -> Iterable[Path]:
    return told(paths, len(paths), what) if progress else paths


def _first(faults: Sequence[Fault]) -> list[Fault]:
    shown = list(faults[:SHOWN_FAULTS])
    if len(faults) > SHOWN_FAULTS:
        what = f"{len(faults) - SHOWN_FAULTS} more clips cannot be encoded"
        shown.append(Fault("audio", what, "mend them, or leave their rows out of the manifest"))
    return shown


def _unusable(audio: Path, what: str) -> Fault:
    return Fault(str(audio), what, "write the file again, or leave its row out of the manifest")
