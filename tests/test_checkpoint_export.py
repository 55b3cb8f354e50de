"""Export: upstream's formats, the merged adapter, and a model card with the evidence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from voxtrain.checkpoint.__main__ import main
from voxtrain.checkpoint.card import cli_flags
from voxtrain.checkpoint.export import chosen_step, export
from voxtrain.checkpoint.writer import write_checkpoint
from voxtrain.durable import write_json, write_table
from voxtrain.fault import InputError
from voxtrain.model import upstream
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import compose

TARGETS = ["q_proj", "v_proj", "k_proj", "o_proj"]
LORA = {
    "r": 2,
    "alpha": 6,
    "dropout": 0.0,
    "enable_lm": True,
    "enable_dit": False,
    "enable_proj": False,
    "target_modules_lm": TARGETS,
    "target_modules_dit": TARGETS,
    "target_proj_modules": ["fusion_concat_proj"],
}


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    named = {"lm.q_proj.weight": (4, 6), "lm.q_proj.bias": (4,), "norm.weight": (6,)}
    return {name: torch.randn(shape, generator=gen).to(dtype) for name, shape in named.items()}


def adapter() -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(2)
    return {
        "lm.q_proj.lora_A": torch.randn(2, 6, generator=gen),
        "lm.q_proj.lora_B": torch.randn(4, 2, generator=gen),
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "audiovae.pth").write_bytes(b"vae")
    save_file(weights(torch.bfloat16), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def full_run(root: Path, base: Path) -> RunFolder:
    run = RunFolder(root)
    for step in (0, 10, 20):
        write_checkpoint(run, step, weights(), base, None, "bf16", {"rows_seen": 8 * step})
    return run


def lora_run(root: Path, base: Path) -> RunFolder:
    run = RunFolder(root)
    write_checkpoint(run, 10, adapter(), base, LORA, "bf16", {"rows_seen": 80})
    return run


def judge(run: RunFolder, selected: int) -> None:
    rows = [{"step": s, "loss/total": 0.9, "loss/diff": 0.8, "loss/stop": 0.1} for s in run.checkpoint_steps()]
    write_table(run.evaluated_checkpoints, rows)
    write_json(run.selection, {"selected_step": selected, "tie_set": [selected], "rule": "lowest"})
    splits = {"train": {"groups": 7, "rows": 60, "seconds": 1800.0}}
    rejects = {"empty_text": 37, "too_short": 3, "silent": 0}
    audit = {"rows_in": 120, "rows_kept": 80, "rejects_by_rule": rejects, "seconds_kept": 5400.0, "splits": splits}
    write_json(DataFolder(run.data).audit, audit)
    learnt = {"_target_": "a.b.C", "lr": 1e-05, "betas": [0.9, 0.95]}
    settings = {"seed": 5, "optimizer": learnt, "data": {"manifest": "/home/me/rows.jsonl"}}
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))


def test_a_full_checkpoint_is_copied_as_it_is_with_a_card(tmp_path: Path, base: Path) -> None:
    run = full_run(tmp_path / "run", base)
    judge(run, 10)
    out = export(run, 10, tmp_path / "out", merged=False)
    for path in run.checkpoint(10).iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
        assert not (out / path.name).samefile(path), "an export leaves the machine: it shares no file with the run"
    card = (out / "README.md").read_text()
    assert "Step 10, after 80 rows" in card
    assert "80 of 120 rows were kept, 1.50 hours. Rejected: empty_text 37, too_short 3." in card
    assert "| train | 7 | 60 | 0.50 hours |" in card
    assert "```yaml\nseed: 5\noptimizer:\n  lr: 1.0e-05\n  betas:\n  - 0.9\n  - 0.95\n```" in card
    assert "/home/me" not in card, "a card is published"
    assert "license: " in card
    assert "| **10** | **0.900000** |" in card
    assert "selected by the rule `lowest`; tie set: 10" in card


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "audiovae.pth"])
def test_a_flipped_bit_is_not_exported(tmp_path: Path, base: Path, name: str) -> None:
    run = full_run(tmp_path / "run", base)
    path = run.checkpoint(10) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"(?s){name}.*not what was written.*restore the folder"):
        export(run, 10, tmp_path / "out", merged=False)
    assert not (tmp_path / "out").exists()
    export(run, 20, tmp_path / "out", merged=False)
    path.unlink()
    with pytest.raises(InputError):
        export(run, 10, tmp_path / "other", merged=False)


def test_a_card_says_what_is_not_known(tmp_path: Path, base: Path) -> None:
    out = export(full_run(tmp_path / "run", base), 20, tmp_path / "out", merged=False)
    card = (out / "README.md").read_text()
    assert "was not judged" in card
    assert "holds no audit" in card
    assert "holds no settings" in card


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_base_plus_scaled_product(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    save_file(weights(dtype), base / "model.safetensors", metadata={"format": "pt"})
    out = export(lora_run(tmp_path / "run", base), 10, tmp_path / "out", merged=True)
    merged, plain, low = load_file(out / "model.safetensors"), weights(dtype), adapter()
    expected = plain["lm.q_proj.weight"].float() + 3.0 * (low["lm.q_proj.lora_B"] @ low["lm.q_proj.lora_A"])
    assert torch.equal(merged["lm.q_proj.weight"], expected.to(dtype))
    assert set(merged) == set(plain)
    assert all(torch.equal(merged[name], plain[name]) for name in ("lm.q_proj.bias", "norm.weight"))
    assert not torch.equal(merged["lm.q_proj.weight"], plain["lm.q_proj.weight"])
    assert {"config.json", "tokenizer.json", "audiovae.pth", "README.md"} <= {path.name for path in out.iterdir()}


def test_an_adapter_is_exported_as_one(tmp_path: Path, base: Path) -> None:
    out = export(lora_run(tmp_path / "run", base), 10, tmp_path / "out", merged=False)
    assert {p.name for p in out.iterdir()} == {"lora_weights.safetensors", "lora_config.json", "step.json", "README.md"}
    card = (out / "README.md").read_text()
    assert f"--model-path {base} --lora-path FOLDER --lora-r 2 --lora-alpha 6 --lora-disable-dit`" in card


@pytest.mark.parametrize("beyond", [{"enable_proj": True}, {"target_modules_lm": ["q_proj"]}])
def test_the_command_line_is_not_named_where_it_would_lose_a_part(
    tmp_path: Path, base: Path, beyond: dict[str, Any]
) -> None:
    run = RunFolder(tmp_path / "run")
    write_checkpoint(run, 10, adapter(), base, LORA | beyond, "bf16", {"rows_seen": 80})
    card = (export(run, 10, tmp_path / "out", merged=False) / "README.md").read_text()
    assert "--lora-path" not in card
    assert "needs the merged export" in card


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, base: Path) -> None:
    run = lora_run(tmp_path / "run", base)
    save_file({"other.weight": torch.zeros(2)}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 layers of the adapter, such as lm.q_proj"):
        export(run, 10, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_all_faults_of_an_export_are_told_at_once(tmp_path: Path, base: Path) -> None:
    run, out = full_run(tmp_path / "run", base), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        export(run, 10, out, merged=True)
    assert [fault.where for fault in caught.value.faults] == [str(out), "--merged"]
    assert (out / "mine.txt").read_text() == "mine"


def test_a_base_that_is_gone_is_told(tmp_path: Path, base: Path) -> None:
    run = lora_run(tmp_path / "run", base)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="the base model is not there"):
        export(run, 10, tmp_path / "out", merged=True)


@pytest.mark.parametrize(
    ("wanted", "why"), [("15", "no such checkpoint"), ("best", "no step"), ("selected", "no check")]
)
def test_a_step_that_is_not_there_is_told(tmp_path: Path, base: Path, wanted: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        chosen_step(full_run(tmp_path / "run", base), wanted)


def test_the_door_exports_the_selected_step(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = full_run(tmp_path / "run", base)
    judge(run, 20)
    assert main(["export", str(run.root), str(tmp_path / "out")]) == 0
    assert "Step 20" in capsys.readouterr().out
    assert main(["export", str(run.root), str(tmp_path / "ten"), "--step", "10"]) == 0
    assert "Step 10, after" in (tmp_path / "ten" / "README.md").read_text()


class TestUpstream:
    """The real thing: upstream's loader on what is written and exported."""

    @pytest.mark.slow
    def test_a_full_checkpoint_loads_with_the_weights_that_were_given(self, tiny_folder: Path, tmp_path: Path) -> None:
        model = upstream.load_model(tiny_folder, None, torch.device("cpu"), torch.float32)
        tensors = {name: value + 0.01 for name, value in model.state_dict().items()}
        run = RunFolder(tmp_path / "run")
        write_checkpoint(run, 1, tensors, tiny_folder, None, "fp32", {"rows_seen": 8})
        out = export(run, 1, tmp_path / "out", merged=False)
        loaded = upstream.VoxCPM2Model.from_local(str(out), optimize=False, device="cpu").state_dict()
        named = {name: value for name, value in loaded.items() if not name.startswith("audio_vae.")}
        assert set(named) == set(tensors)
        assert all(torch.equal(named[name], tensors[name].to(named[name].dtype)) for name in tensors)

    @pytest.mark.slow
    def test_a_merged_adapter_does_what_the_adapter_does(self, tiny_folder: Path, tmp_path: Path) -> None:
        tuning = compose(["+recipe=lora_demo", "tuning.rank=4"]).tuning
        model = upstream.load_model(tiny_folder, tuning, torch.device("cpu"), torch.float32)
        tensors = {name: torch.randn_like(value) * 0.05 for name, value in upstream.adapters(model).items()}
        run = RunFolder(tmp_path / "run")
        write_checkpoint(run, 1, tensors, tiny_folder, tuning.lora_config(), "bf16", {"rows_seen": 8})
        with torch.no_grad():
            for name, value in upstream.adapters(model).items():
                value.copy_(tensors[name])
        lora = upstream.LoRAConfig(**tuning.lora_config())
        theirs = upstream.VoxCPM2Model.from_local(str(tiny_folder), optimize=False, device="cpu", lora_config=lora)
        loaded, skipped = theirs.load_lora_weights(str(run.checkpoint(1)))
        assert (set(loaded), skipped) == (set(tensors), [])
        out = export(run, 1, tmp_path / "out", merged=True)
        merged = upstream.load_model(out, None, torch.device("cpu"), torch.float32)
        base = upstream.load_model(tiny_folder, None, torch.device("cpu"), torch.float32)
        x = torch.randn(1, 12, model.config.lm_config.hidden_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            adapted, put_in, plain = (m.base_lm(x)[0] for m in (model, merged, base))
        torch.testing.assert_close(put_in, adapted, rtol=1e-4, atol=1e-5)  # one sum in another order, through layers
        assert (plain - adapted).abs().max() > 1e-2, "the adapter does nothing, so this test proves nothing"

    @pytest.mark.slow
    def test_its_command_line_and_from_pretrained_load_what_is_exported(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        from voxcpm import VoxCPM, cli

        model = upstream.load_model(tiny_folder, None, torch.device("cpu"), torch.float32)
        tensors = {name: value + 0.01 for name, value in model.state_dict().items()}
        run = RunFolder(tmp_path / "run")
        write_checkpoint(run, 1, tensors, tiny_folder, None, "fp32", {"rows_seen": 8})
        out = str(export(run, 1, tmp_path / "out", merged=False))
        asked = ["design", "--text", "x", "--output", "x.wav", "--device", "cpu", "--no-denoiser", "--no-optimize"]
        doors = (
            cli.load_model(cli._build_parser().parse_args([*asked, "--model-path", out])),
            VoxCPM.from_pretrained(out, load_denoiser=False, optimize=False, device="cpu"),
        )
        for loaded in doors:
            theirs = loaded.tts_model.state_dict()
            assert all(torch.equal(theirs[name], tensors[name].to(theirs[name].dtype)) for name in tensors)

    @pytest.mark.slow
    def test_its_command_line_loads_an_adapter_as_the_card_says(self, tiny_folder: Path, tmp_path: Path) -> None:
        """All of it, with the flags of the card; with projections it loses some, and the card does not name it."""
        for more, keeps_all in (((), True), (("tuning.projections=true",), False)):
            tuning = compose(["+recipe=lora_demo", "tuning.rank=4", "tuning.alpha=12", *more]).tuning
            model = upstream.load_model(tiny_folder, tuning, torch.device("cpu"), torch.float32)
            tensors = {name: torch.randn_like(value) * 0.05 for name, value in upstream.adapters(model).items()}
            run = RunFolder(tmp_path / f"run_{keeps_all}")
            write_checkpoint(run, 1, tensors, tiny_folder, tuning.adapter_config(), "bf16", {"rows_seen": 8})
            out = export(run, 1, tmp_path / f"out_{keeps_all}", merged=False)
            told = re.findall(r"`(--model-path .*)`", (out / "README.md").read_text())
            assert len(told) == keeps_all
            flags = ["--lora-path", str(out), *cli_flags(tuning.lora_config()), "--model-path", str(tiny_folder)]
            loaded = from_command_line(told[0].replace("FOLDER", str(out)).split() if told else flags)
            theirs = {name: value for name, value in loaded.state_dict().items() if "lora_" in name}
            assert (set(theirs) == set(tensors)) is keeps_all
            assert all(torch.equal(value, tensors[name].to(value.dtype)) for name, value in theirs.items())
            scales = {part.scaling for part in loaded.modules() if hasattr(part, "scaling")}
            assert {float(scale) for scale in scales} == {3.0}


def from_command_line(flags: list[str]) -> upstream.VoxCPM2Model:
    """The model that upstream's command line loads."""
    from voxcpm import cli

    asked = ["design", "--text", "x", "--output", "x.wav", "--device", "cpu", "--no-denoiser", "--no-optimize"]
    model: upstream.VoxCPM2Model = cli.load_model(cli._build_parser().parse_args([*asked, *flags])).tts_model
    return model
