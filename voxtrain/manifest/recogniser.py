"""A speech recogniser, faster-whisper: what audits and listening hear with.

It needs the extra `asr`, which is imported when it is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from voxtrain.fault import Fault, InputError

SHOWN_LETTERS = 200

Recogniser = Callable[[str], str]
"""The path of an audio file that can be decoded, to what is said in it."""


def load_recogniser(model: str, device: str, compute_type: str, language: str | None, setting: str) -> Recogniser:
    """Load faster-whisper; `setting` is where the user asked for it. Raises InputError where it cannot be loaded.

    model: a name that faster-whisper knows, or a folder. language: None lets it guess for each clip.
    """
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        what = f"clips are listened to with faster-whisper, which cannot be imported: {error}"
        raise InputError(Fault(setting, what, f"pip install 'voxtrain[asr]', or {setting}=null")) from None
    try:
        whisper = WhisperModel(str(Path(model).expanduser()), device=device, compute_type=compute_type)
    except Exception as error:  # of a hub, a runtime or a file, whatever they raise
        what = f"the recogniser cannot be loaded: {' '.join(str(error).split())[:SHOWN_LETTERS]}"
        remedy = "name a model that faster-whisper knows, or a folder that holds one"
        raise InputError(Fault(f"{setting} = {model} on {device}, {compute_type}", what, remedy)) from None

    def recognise(path: str) -> str:
        segments, _ = whisper.transcribe(_as_wav(path), language=language, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return recognise


def _as_wav(path: str) -> io.BytesIO:
    """The clip as WAV, so that the recogniser hears what is learnt from: what soundfile decodes."""
    import soundfile

    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    wav = io.BytesIO()
    soundfile.write(wav, samples.mean(axis=1), rate_hz, format="WAV", subtype="FLOAT")
    wav.seek(0)
    return wav
