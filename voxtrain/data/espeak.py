"""Speech from eSpeak NG, in a process of its own: `python -P espeak.py < job.json`.

eSpeak's synthesizer carries state from one utterance to the next and seeds its noise from the clock, so the same text
sounds different by a few samples each time. In a fresh process with a fixed seed a fixed list of utterances gives the
same bytes. This file is run by its path and imports nothing of voxtrain.

The job: {"folder": absolute path, "utterances": [{"file", "text", "voice", "words_per_minute", "pitch", "range",
"cut_ms": null or [first, last]}, ...]}. Each becomes a 16-bit WAV of one channel under the folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import wave
from pathlib import Path
from typing import Any

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: the callback gets all samples before espeak_Synth returns
NEVER_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a missing voice is an error code
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
UTF8 = 1  # espeakCHARS_UTF8
SEED = 1
SAMPLE_BYTES = 2

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesizer:
    """eSpeak NG's library (speak_lib.h)."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path())
        os.chdir(data.parent)  # eSpeak holds the path of its data in a short array: a relative one always fits
        self.rate_hz: int = self._library.espeak_Initialize(SYNCHRONOUS, 0, data.name.encode(), NEVER_EXIT)
        if self.rate_hz <= 0:
            raise RuntimeError(f"eSpeak NG cannot read its data in {data}")
        self._samples = bytearray()
        self._callback = Callback(self._take)  # kept: C holds no reference to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples += ctypes.string_at(samples, count * SAMPLE_BYTES)
        return 0  # go on

    def say(self, utterance: dict[str, Any]) -> bytes:
        """Samples of one utterance, 16 bit."""
        self._samples.clear()
        text, voice = utterance["text"].encode(), utterance["voice"].encode()
        self._check(self._library.espeak_SetVoiceByName(voice), utterance)
        for parameter, key in ((RATE, "words_per_minute"), (PITCH, "pitch"), (RANGE, "range")):
            self._check(self._library.espeak_SetParameter(parameter, utterance[key], 0), utterance)
        length = ctypes.c_size_t(len(text) + 1)
        self._check(self._library.espeak_Synth(text, length, 0, 1, 0, UTF8, None, None), utterance)
        self._check(self._library.espeak_Synchronize(), utterance)
        return bytes(self._samples)

    def _check(self, code: int, utterance: dict[str, Any]) -> None:
        if code != 0:
            raise RuntimeError(f"eSpeak NG gave error {code} at {utterance}")


def main() -> None:
    """Make every utterance of the job on stdin."""
    job = json.load(sys.stdin)
    synthesizer = Synthesizer()
    for utterance in job["utterances"]:
        samples = synthesizer.say(utterance)
        if utterance["cut_ms"] is not None:
            first, last = (ms * synthesizer.rate_hz // 1000 * SAMPLE_BYTES for ms in utterance["cut_ms"])
            samples = samples[first:last]
        with wave.open(str(Path(job["folder"], utterance["file"])), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(SAMPLE_BYTES)
            file.setframerate(synthesizer.rate_hz)
            file.writeframes(samples)


if __name__ == "__main__":
    main()
