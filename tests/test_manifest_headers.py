"""Headers that are read without libsndfile: where one is plain enough, it says what libsndfile would say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxtrain.manifest.sound import read_sound

SHORTS = np.random.default_rng(1).normal(0, 3000, (1_000, 2)).clip(-32768, 32767).astype(np.int16)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them."""
    folder = tmp_path_factory.mktemp("originals")
    kinds = [("a.wav", "PCM_16"), ("b.wav", "PCM_24"), ("c.wav", "FLOAT"), ("d.wav", "PCM_U8"), ("e.wav", "ALAW")]
    for name, subtype in [*kinds, ("f.flac", "PCM_16"), ("g.flac", "PCM_24")]:
        with soundfile.SoundFile(folder / name, "w", 22_050, 1 + (name > "c"), subtype) as file:
            file.title, file.artist = "title" * 20, "artist"
            file.write(SHORTS[: 500 + ord(name[0]), : file.channels] / 32768)
    return folder


damages = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 300), st.sampled_from([0, 1, 2, 3, 127, 128, 254, 255])),
        st.tuples(st.just("size"), st.integers(4, 60), st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 900])),
        st.tuples(st.just("cut"), st.integers(0, 2_500), st.just(0)),
        st.tuples(st.just("more"), st.integers(0, 60), st.integers(1, 9)),
    ),
    max_size=3,
)


def damaged(content: bytes, how: list[tuple[str, int, int]]) -> bytes:
    for kind, at, value in how:
        if kind == "cut":
            content = content[:at]
        elif kind == "more":
            content = content[:at] + b"\x5a" * value + content[at:]
        else:
            put = bytes([value]) if kind == "byte" else struct.pack("<I", value)
            content = content[:at] + put + content[at + len(put) :]
    return content


def compared(path: Path) -> None:
    found = read_sound(str(path), decode=False)
    try:
        with soundfile.SoundFile(path) as file:
            says = 0 < file.frames < 2**53  # libsndfile's word for no word is 2^63 - 1
            expected = (file.frames / file.samplerate, file.samplerate, file.channels) if says else (None, 0, 0)
    except (soundfile.LibsndfileError, ZeroDivisionError):
        expected = (None, 0, 0)
    assert (found.duration_s, found.sample_rate_hz, found.channels) == expected


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_header_says_what_libsndfile_says(originals: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(sorted(originals.iterdir())))
    path = tmp_path / original.name
    path.write_bytes(damaged(original.read_bytes(), data.draw(damages)))
    compared(path)


@pytest.mark.slow
@settings(deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_header_says_what_libsndfile_says_many_times(originals: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(sorted(originals.iterdir())))
    path = tmp_path / original.name
    path.write_bytes(damaged(original.read_bytes(), data.draw(damages)))
    compared(path)
    read_sound(str(path), decode=True)


def test_plain_headers_are_read_without_libsndfile(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(soundfile, "SoundFile", refuse)
    plain = [path for path in originals.iterdir() if path.name not in {"c.wav", "e.wav"}]  # with PEAK; A-law
    assert len(plain) == 5
    for path in plain:
        assert read_sound(str(path), decode=False).duration_s == (500 + ord(path.name[0])) / 22_050
