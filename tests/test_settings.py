"""Settings: every option composes and is checked; recipes keep to their rules; a run folder's settings open again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from voxtrain.composition import conf_folder, known_options
from voxtrain.fault import InputError
from voxtrain.settings import GROUPS, Settings, compose, load

RECIPES = sorted(path.stem for path in (conf_folder() / "recipe").glob("*.yaml"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((conf_folder() / group).glob("*.yaml"))]
STACKS = [
    ("24gb", "one_gpu"),
    ("16gb", "one_gpu"),
    ("12gb", "one_gpu"),
    ("80gb", "one_gpu"),
    ("cpu", "cpu"),
    ("cpu", "cpu_one_thread"),
    ("24gb", "ddp"),
]
"""Options of `memory` and `trainer` that do not contradict each other."""
GIVEN = "data.manifest=rows.jsonl"
ROOT = Path(__file__).resolve().parents[1]


def test_there_are_recipes_and_options() -> None:
    assert {"full_sft_24gb", "lora_24gb", "full_sft_80gb", "preflight", "demo", "lora_demo"} <= set(RECIPES)
    assert {group for group, _ in OPTIONS} == set(GROUPS) - {"train"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes(recipe: str) -> None:
    settings = compose([f"+recipe={recipe}", GIVEN])
    assert settings.name == recipe
    assert settings.train.total_steps() > 0


def choices(turn: int) -> dict[str, str]:
    """One option of each group; over the turns of STACKS, every option of every group."""
    options = {group: [name for of, name in OPTIONS if of == group] for group, _ in OPTIONS}
    return {group: names[turn % len(names)] for group, names in options.items()} | dict(
        zip(("memory", "trainer"), STACKS[turn], strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(STACKS)))
def test_every_option_composes(turn: int) -> None:
    many = ["trainer.devices=2"] if choices(turn)["trainer"] == "ddp" else []  # how many has to be said
    settings = compose([GIVEN, *(f"{group}={option}" for group, option in choices(turn).items()), *many])
    for group, option in choices(turn).items():
        given = yaml.safe_load((conf_folder() / group / f"{option}.yaml").read_text())
        assert settings.plain[group]["_target_"] == given["_target_"]
        assert given["_target_"].startswith("voxtrain.")


def test_the_turns_take_every_option() -> None:
    assert {choice for turn in range(len(STACKS)) for choice in choices(turn).items()} == set(OPTIONS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_short_and_set_only_what_they_may(recipe: str) -> None:
    path = conf_folder() / "recipe" / f"{recipe}.yaml"
    lines = path.read_text().splitlines()
    assert len(lines) <= 25
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# "), "a recipe opens with what it is for"
    assert lines[2].startswith("# Measured:"), "and with what was measured"
    body = set(yaml.safe_load(path.read_text())) - {"defaults"}
    # A key set in a recipe's body beats the option chosen on the command line, so these alone may be set there.
    assert body <= {"name", "seed", "train", "data", "clean", "checkpoint", "validation", "listening"}


def test_an_option_on_the_command_line_beats_the_recipe() -> None:
    assert compose(["+recipe=demo", "tuning=lora"]).tuning.lora_config() is not None


def test_published_stack() -> None:
    settings = compose(["+recipe=full_sft_24gb", GIVEN])
    assert (settings.train.batch_size, settings.train.grad_accum) == (1, 8)
    assert settings.memory.activation_checkpointing
    assert settings.memory.state == "paged_8bit"
    assert settings.memory.environment({}) == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert settings.memory.environment({"PYTORCH_CUDA_ALLOC_CONF": "mine"}) == {}


def test_total_steps_is_the_smaller_of_steps_and_rows() -> None:
    by_rows = ["+recipe=demo", "train.batch_size=2", "train.grad_accum=4"]
    train = compose([*by_rows, "train.max_steps=null", "train.max_rows=81"]).train
    assert train.total_steps() == 11
    assert train.model_copy(update={"max_steps": 5}).total_steps() == 5
    with pytest.raises(InputError, match="never end"):
        compose([*by_rows, "train.max_steps=null", "train.max_rows=null"])


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InputError) as told:
        compose(["+recipe=demo", "train.batch_size=0", "nonsense=1", "memory=7gb", "validation.draws=many", "seed=-1"])
    assert {fault.where.split("=")[0].strip() for fault in told.value.faults} == {
        "train.batch_size",
        "nonsense",
        "memory",
        "validation.draws",
        "seed",
    }
    assert all(fault.what and fault.remedy for fault in told.value.faults)


@pytest.mark.slow
def test_near_names_are_proposed() -> None:
    with pytest.raises(InputError, match=r"did you mean train.max_steps\?"):
        compose(["+recipe=demo", "train.max_stpes=3"])


@pytest.mark.slow
def test_a_setting_of_another_option_names_that_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"add tuning=lora, or leave tuning.rank out"):
        compose(["+recipe=demo", "tuning.rank=8"])
    with pytest.raises(InputError, match=r"did you mean tuning.rank\?"):
        compose(["+recipe=demo", "tuning.rnk=8"])
    write_config(compose(["+recipe=demo"]), tmp_path)
    with pytest.raises(InputError, match="it is a setting of tuning=lora"):
        load(tmp_path, ["tuning.rank=8"])


@pytest.mark.slow
def test_choices_are_taken_before_settings_whatever_their_order(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        compose(["+recipe=demo", "tuning.rank=8", "tuning=lora", "no_such_setting=1"])
    assert [fault.where for fault in told.value.faults] == ["no_such_setting=1"]
    write_config(compose(["+recipe=demo"]), tmp_path)
    assert load(tmp_path, ["tuning.rank=8", "tuning=lora"]).tuning.lora_config()["r"] == 8


def write_config(settings: Settings, folder: Path) -> None:
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings.plain)))


def test_a_run_folder_opens_again(tmp_path: Path) -> None:
    settings = compose(["+recipe=lora_demo", "seed=7"])
    write_config(settings, tmp_path)
    assert load(tmp_path) == settings
    changed = load(tmp_path, ["validation.draws=3", "logger=wandb", "logger.mode=offline"])
    assert changed.validation.draws == 3
    assert changed.logger != settings.logger


def test_faults_of_overrides_on_a_run_folder(tmp_path: Path) -> None:
    write_config(compose(["+recipe=demo"]), tmp_path)
    with pytest.raises(InputError) as told:
        load(tmp_path, ["validation.drawz=3", "+more=1", "validation.draws=0"])
    assert len(told.value.faults) == 3
    with pytest.raises(InputError, match="no run folder"):
        load(tmp_path / "nothing")


def test_a_broken_settings_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\nname: b\nseed: [")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    door = "python -m voxtrain "
    return [line.removeprefix(door).split() for line in lines if line.startswith(door)]


@pytest.mark.slow
def test_every_run_in_the_readme_composes() -> None:
    commands = readme_commands()
    assert len(commands) >= 4
    different = set()
    for command in commands:
        words = [word for word in command if word != "-m"]
        singles = [re.sub(r"=([^=,]+),.*", r"=\1", word) for word in words if not word.startswith("resume=")]
        different.add(tuple(word for word in singles if not word.startswith("+sweep")))
    for words in different:
        compose(words)


@pytest.mark.slow
def test_the_settings_check_imports_no_torch() -> None:
    code = "import sys, voxtrain.settings as s; s.compose(['+recipe=demo']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_known_options() -> None:
    assert "24gb" in known_options("memory")
    assert known_options("no_such_group") == []
