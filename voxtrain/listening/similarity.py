"""How much a voice sounds like another: embeddings of speakers, and the cosine between them.

Two kinds of models: Resemblyzer, whose weights come with its package (the extra `voice`), and x-vector models for
transformers, by name or folder, such as microsoft/wavlm-base-plus-sv.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.fault import Fault, InputError
from voxtrain.listening.settings import Similarity
from voxtrain.manifest.row import Row

Floats = NDArray[np.float64]
Embedder = Callable[[Path], Floats]
"""The path of an audio file to the voice in it, a vector [E] of length 1. Raises ValueError where there is no voice."""

SETTING = "listening.similarity"
RESEMBLYZER = "resemblyzer"
MOST_SPEAKERS, MOST_CLIPS, FEWEST_CLIPS = 32, 64, 2
"""Of the training data that samples are compared with: the speakers with the most rows, and clips of all of them."""


def load_embedder(settings: Similarity) -> Embedder:
    """Load the model. Raises InputError where it is not installed or cannot be loaded."""
    try:
        return _resemblyzer(settings) if settings.model == RESEMBLYZER else _x_vectors(settings)
    except ImportError as error:
        what = f"voices are compared with {settings.model}, which cannot be imported: {error}"
        raise InputError(Fault(SETTING, what, f"pip install 'voxtrain[voice]', or {SETTING}=null")) from None
    except (OSError, ValueError, RuntimeError) as error:
        what = f"the model cannot be loaded: {' '.join(str(error).split())[:200]}"
        remedy = f"name {RESEMBLYZER}, or an x-vector model for transformers, or a folder that holds one"
        raise InputError(Fault(f"{SETTING}.model = {settings.model}", what, remedy)) from None


def _resemblyzer(settings: Similarity) -> Embedder:
    import soundfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependency webrtcvad imports pkg_resources, which says that it will go
        from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder(_device(settings), verbose=False)

    def embed(path: Path) -> Floats:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        voiced = preprocess_wav(samples.mean(axis=1), rate_hz)  # 16 kHz, long silences cut
        if not len(voiced):
            raise ValueError("no voice is heard in it")
        return _unit(encoder.embed_utterance(voiced))

    return embed


def _x_vectors(settings: Similarity) -> Embedder:
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    from voxtrain.data.audio import SAMPLE_RATE_HZ, read_wave

    name, device = str(Path(settings.model).expanduser()), _device(settings)
    extractor: Any = AutoFeatureExtractor.from_pretrained(name)  # type: ignore[no-untyped-call]
    model = AutoModelForAudioXVector.from_pretrained(name).to(device).eval()

    def embed(path: Path) -> Floats:
        inputs = extractor(read_wave(path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").to(device)
        with torch.no_grad():
            return _unit(model(**inputs).embeddings[0].float().cpu().numpy())

    return embed


def _device(settings: Similarity) -> str:
    from voxtrain.model.device import chosen_device

    return str(chosen_device(f"{SETTING}.device", settings.device))


def _unit(voice: NDArray[Any]) -> Floats:
    found = voice.astype(np.float64)
    length = float(np.linalg.norm(found))
    if not np.isfinite(length) or length == 0:
        raise ValueError("its voice is no finite vector")
    return np.asarray(found / length)


def speaker_clips(rows: Sequence[Row], clips: int) -> dict[str, list[Row]]:
    """Training rows that stand for each speaker, always the same ones; rows without a speaker are one speaker's."""
    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest()):
        by_speaker[row.speaker or ""].append(row)
    largest = sorted(by_speaker, key=lambda speaker: (-len(by_speaker[speaker]), speaker))[:MOST_SPEAKERS]
    each = max(FEWEST_CLIPS, min(clips, MOST_CLIPS // max(len(largest), 1)))
    return {speaker: by_speaker[speaker][:each] for speaker in largest}


def voices(clips: dict[str, list[Row]], embed: Embedder) -> Floats:
    """The mean voice of each speaker, [V, E], of length 1; of clips that cannot be heard none is made."""
    found = []
    for rows in clips.values():
        heard = [voice for row in rows if (voice := _heard(embed, row.audio)) is not None]
        if heard:
            found.append(_unit(np.mean(heard, axis=0)))
    return np.array(found, dtype=np.float64)


def closest(voice: Floats, others: Floats) -> float:
    """The cosine between a voice [E] and the closest of others [V, E]."""
    return float((others @ voice).max())


def _heard(embed: Embedder, path: Path) -> Floats | None:
    try:
        return embed(path)
    except (InputError, ValueError, RuntimeError, OSError):
        return None
