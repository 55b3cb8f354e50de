"""The model card of an exported checkpoint: what it is, what it learnt from, and the evidence for choosing it."""

from __future__ import annotations

import csv
from typing import Any

from voxtrain.checkpoint.retention import read_evidence
from voxtrain.checkpoint.writer import STEP
from voxtrain.durable import read_json
from voxtrain.model.adapter_files import files_in
from voxtrain.run_folder import DataFolder, RunFolder

LOSSES = ("loss/total", "loss/diff", "loss/stop")


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
        "## Use",
        "",
        *_use(adapter is not None and not merged),
    ]
    return "\n".join(lines) + "\n"


def _data(run: RunFolder) -> list[str]:
    path = DataFolder(run.data).audit
    if not path.is_file():
        return ["The run folder holds no audit."]
    audit = read_json(path)
    rejects = ", ".join(f"{rule} {count:,}" for rule, count in audit["rejects_by_rule"].items() if count) or "none"
    return [f"{audit['rows_kept']:,} of {audit['rows_in']:,} rows were kept. Rejected: {rejects}."]


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


def _use(as_adapter: bool) -> list[str]:
    if as_adapter:
        return [
            "`VoxCPM2Model.from_local(base_model, lora_config=LoRAConfig(**...))`, then `load_lora_weights(FOLDER)`."
        ]
    return ["`VoxCPM.from_pretrained(FOLDER)`, or upstream's command line with this folder as its model."]
