"""The model card of an exported checkpoint: what it is, what it learnt from, and the evidence for choosing it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from voxtrain.checkpoint.retention import read_evidence
from voxtrain.checkpoint.writer import STEP
from voxtrain.durable import read_json
from voxtrain.model.adapter_files import files_in
from voxtrain.run_folder import DataFolder, RunFolder

LOSSES = ("loss/total", "loss/diff", "loss/stop")
TOLD = ("seed", "tuning", "optimizer", "schedule", "train", "memory")
"""The settings that say how it learnt; others name places on a machine, and a card is published."""
COMMAND_LINE_ADAPTS = {
    "enable_lm": ("target_modules_lm", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "enable_dit": ("target_modules_dit", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "enable_proj": ("target_proj_modules", {"enc_to_lm_proj", "lm_to_dit_proj", "res_to_dit_proj"}),
}
"""By its flags, upstream's command line places adapters here alone (cli.py: load_model takes voxcpm.py's LoRAConfig,
which lacks VoxCPM 2's fusion_concat_proj); what an adapter has beyond that is passed over without a word."""


def model_card(run: RunFolder, step: int, *, merged: bool) -> str:
    """README.md of an exported checkpoint, Markdown."""
    folder = run.checkpoint(step)
    adapter = files_in(folder)
    kind = "full fine-tuning" if adapter is None else "LoRA, merged into its base model" if merged else "LoRA adapter"
    facts = read_json(folder / STEP)
    lines = [
        "---",
        "library_name: voxcpm",
        "pipeline_tag: text-to-speech",
        "license: other  # the base model's, and what the recordings allow: please fill in",
        "---",
        "",
        f"# A VoxCPM 2 fine-tuned by voxtrain {facts['voxtrain']} ({kind})",
        "",
        f"Step {step}, after {facts['rows_seen']:,} rows.",
        *(["", f"Base model: `{read_json(folder / adapter.config)['base_model']}`"] if adapter else []),
        "",
        "## Data",
        "",
        *_data(run),
        "",
        "## Evidence",
        "",
        *_evidence(run, step),
        "",
        "## Settings",
        "",
        *_settings(run),
        "",
        "## Use",
        "",
        *_use(None if adapter is None or merged else read_json(folder / adapter.config)),
    ]
    return "\n".join(lines) + "\n"


def _data(run: RunFolder) -> list[str]:
    path = DataFolder(run.data).audit
    if not path.is_file():
        return ["The run folder holds no audit."]
    audit = read_json(path)
    rejects = ", ".join(f"{rule} {count:,}" for rule, count in audit["rejects_by_rule"].items() if count) or "none"
    told = [
        f"{audit['rows_kept']:,} of {audit['rows_in']:,} rows were kept, {_hours(audit['seconds_kept'])}. "
        f"Rejected: {rejects}.",
        "",
        "| split | groups | rows | audio |",
        "|---|---|---|---|",
    ]
    for name, split in audit["splits"].items():
        told.append(f"| {name} | {split['groups']:,} | {split['rows']:,} | {_hours(split['seconds'])} |")
    return told


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours"


def _evidence(run: RunFolder, step: int) -> list[str]:
    if not run.evaluated_checkpoints.is_file():
        return ["This checkpoint was not judged on held-out recordings."]
    with run.evaluated_checkpoints.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    told = ["Held-out losses on fixed draws:", "", "| step | " + " | ".join(LOSSES) + " |", "|---|---|---|---|"]
    told += [_line(row, step) for row in rows]
    if run.selection.is_file():
        selection: dict[str, Any] = read_json(run.selection)
        tie = ", ".join(map(str, sorted(read_evidence(run).tie_set)))
        verdict = (
            "selected" if selection["selected_step"] == step else f"not selected ({selection['selected_step']} was)"
        )
        told += ["", f"This step was {verdict} by the rule `{selection['rule']}`; tie set: {tie}."]
    return told


def _line(row: dict[str, str], step: int) -> str:
    mark = "**" if int(float(row["step"])) == step else ""
    values = [str(int(float(row["step"]))), *(f"{float(row[name]):.6f}" for name in LOSSES)]
    return "| " + " | ".join(f"{mark}{value}{mark}" for value in values) + " |"


def _settings(run: RunFolder) -> list[str]:
    if not run.config.is_file():
        return ["The run folder holds no settings."]
    settings = OmegaConf.to_container(OmegaConf.load(run.config))
    assert isinstance(settings, dict)
    told = {name: _plain(settings[name]) for name in TOLD if name in settings}
    return ["```yaml", OmegaConf.to_yaml(OmegaConf.create(told)).strip(), "```"]


def _plain(value: Any) -> Any:
    """A group without the names of our classes."""
    if not isinstance(value, dict):
        return value
    return {key: _plain(inner) for key, inner in value.items() if key != "_target_"}


def _use(adapter: Mapping[str, Any] | None) -> list[str]:
    """adapter: its configuration file, None for whole weights."""
    if adapter is None:
        return ["`VoxCPM.from_pretrained(FOLDER)`, or upstream's command line with `--model-path FOLDER`."]
    base, lora = adapter["base_model"], adapter["lora_config"]
    loaded = f'VoxCPM.from_pretrained("{base}", lora_config=LoRAConfig(**lora_config), lora_weights_path=FOLDER)'
    told = [f"`{loaded}`, with `lora_config` from `lora_config.json` and `LoRAConfig` from `voxcpm.model.voxcpm2`.", ""]
    if any(lora[flag] and set(lora[key]) != targets for flag, (key, targets) in COMMAND_LINE_ADAPTS.items()):
        return [*told, "Upstream's command line would pass over a part of this adapter: it needs the merged export."]
    return [*told, f"On upstream's command line: `--model-path {base} --lora-path FOLDER {' '.join(cli_flags(lora))}`."]


def cli_flags(lora: Mapping[str, Any]) -> list[str]:
    """What upstream's command line has to be told of an adapter, since it does not read lora_config.json."""
    flags = ["--lora-r", str(lora["r"]), "--lora-alpha", str(lora["alpha"])]
    flags += ["--lora-disable-lm"] * (not lora["enable_lm"]) + ["--lora-disable-dit"] * (not lora["enable_dit"])
    return flags + ["--lora-enable-proj"] * bool(lora["enable_proj"])
