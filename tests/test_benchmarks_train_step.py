"""The benchmark of the training step runs, measures what it says, and refuses what it cannot use."""

from __future__ import annotations

import json
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floor import Products, Recorder
from benchmarks.material import ROWS, read_material
from benchmarks.shape import SHAPE, read_shape, released_shape
from benchmarks.train_step import main
from voxtrain.fault import InputError
from voxtrain.model.size import parameter_counts

CPU = torch.device("cpu")
DEPTHS = ("num_hidden_layers", "residual_lm_num_layers", "num_layers")
WIDTHS = (
    *("hidden_size", "intermediate_size", "kv_channels", "feat_dim", "scalar_quantization_latent_dim"),
    *("hidden_dim", "ffn_dim", "encoder_dim", "latent_dim", "decoder_dim"),
)


@pytest.fixture
def speech(tmp_path: Path, clips: list[tuple[Path, str, str]]) -> Path:
    """A folder of speech with as many clips as a step has rows."""
    folder = tmp_path / "speech"
    folder.mkdir()
    records = [
        {"id": f"clip{n}", "audio": str(path), "text": text, "duration": soundfile.info(path).duration}
        for n, (path, text, _) in enumerate(clips)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def threads() -> Any:
    """The benchmark sets the number of threads of this process."""
    before = torch.get_num_threads()
    yield 1
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_whole_comparison(
    speech: Path, tiny: Any, tmp_path: Path, threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps({"architecture": tiny.architecture}))
    arguments = ["--speech", str(speech), "--shape", str(shape), "--threads", str(threads), "--rounds", "1"]
    assert main([*arguments, "--profile"]) == 0
    told = capsys.readouterr().out
    ratio = re.fullmatch(r"ratio (\d+\.\d\d)", told.splitlines()[-1])
    assert ratio is not None, told
    assert float(ratio[1]) > 0
    ladder = [line for line in told.splitlines() if re.match(r"upstream's loop|\+ ", line)]
    assert [line.split("  ")[0] for line in ladder] == [
        "upstream's loop",
        "+ latents from the cache",
        "+ masked positions left out",
        "+ rows packed together",
        "+ weights updated in one pass",
        "+ operators for the CPU, memory kept (ours)",
    ]
    medians = [float(re.findall(r"\d+\.\d{3}", line)[0]) for line in ladder]
    assert float(ratio[1]) == pytest.approx(medians[0] / medians[-1], rel=0.02)  # medians are told to a millisecond
    for said in ("latent cache: ", "arithmetic floor: ", "our step by part", "language models", "LocDiT", "attention"):
        assert said in told


def test_without_speech_it_says_so(tmp_path: Path, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--speech", str(tmp_path), "--threads", str(threads)]) == 2
    assert "there is no manifest.jsonl" in capsys.readouterr().err


def test_a_broken_shape_is_told(speech: Path, tmp_path: Path) -> None:
    for content in ("{", "{}", '{"architecture": {"lm_config": {}}}'):
        (tmp_path / "shape.json").write_text(content)
        with pytest.raises(InputError, match="architecture"):
            read_shape(tmp_path / "shape.json")


def test_rows_are_of_all_lengths(speech: Path) -> None:
    lines = (speech / "manifest.jsonl").read_text().splitlines()
    many = [
        json.loads(line) | {"id": f"{n}.{k}", "duration": 10 * n + k} for n, line in enumerate(lines) for k in (1, 2, 3)
    ]
    (speech / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in many))
    material = read_material(speech)
    assert [row.id for row in material.rows] == [f"{n}.2" for n in range(ROWS)]
    assert len(material.texts) == 3 * ROWS


def test_the_shape_is_the_released_one_scaled() -> None:
    """Every width by one factor, every depth by another, the AudioVAE's too; about 90 M parameters."""
    said, small, large = json.loads(SHAPE.read_text()), read_shape(SHAPE), released_shape()
    widths, depths = Fraction(said["widths"]), Fraction(said["depths"])
    looked = []

    def compare(ours: dict[str, Any], released: dict[str, Any]) -> None:
        assert ours.keys() == released.keys()
        for key, value in released.items():
            if isinstance(value, dict):
                compare(ours[key], value)
            elif key in (*WIDTHS, *DEPTHS):
                assert ours[key] == value * (widths if key in WIDTHS else depths), key
                looked.append(key)
            elif key not in ("long_factor", "short_factor", "device", "dtype"):
                assert ours[key] == value, key

    compare(small, large)
    assert set(looked) == {*WIDTHS, *DEPTHS}
    assert parameter_counts(small)["trainable"] == pytest.approx(90e6, rel=0.05)


def test_the_recorder_counts_products_forward_and_backward() -> None:
    layer, values = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    with Recorder(lambda: "here") as recorder:
        layer(values).sum().backward()
    assert recorder.products == {("here", 1, 7, 3, 5): 1, ("here", 1, 7, 5, 3): 1, ("here", 1, 5, 7, 3): 1}
    products = Products(recorder.products, CPU, autocast=False)
    for _ in range(3):
        products.step()
    for floor in (products.floor(), products.floor_from_memory()):
        assert floor.total_flop == 3 * 2 * 3 * 5 * 7
        assert 0 < floor.total_s < 1
