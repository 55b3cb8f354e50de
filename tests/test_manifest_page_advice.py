"""What the page of an audit works out and advises: the calculator, steps, commands, words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import audit_material as made
import pytest
from manifest_material import clean_rules

from voxtrain.durable import read_json
from voxtrain.manifest.clean import WORD_ERROR_RATE
from voxtrain.manifest.decide import report_names
from voxtrain.manifest.page.advice import what_to_do
from voxtrain.manifest.page.commands import data_settings
from voxtrain.manifest.page.ledger import calculator
from voxtrain.manifest.page.split import certified
from voxtrain.manifest.page.words import RULES, share
from voxtrain.run_folder import DataFolder
from voxtrain.settings import compose

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


def test_the_calculator_agrees_with_the_formula() -> None:
    """The published run's share: 5,229 of 17,055 rows, about 95 per cent of the steps of 8."""
    audit = {"rows_in": 17_055, "rows_kept": 11_826, "rejects_by_rule": {"empty_text": 5_229, "silent": 0}}
    found = calculator({**audit, "contamination": {"rows_per_step": 24}})
    assert found is not None
    assert found["batches"] == [1, 2, 4, 8, 16, 24, 32]
    (name, cells), (rule, _) = found["lines"]
    assert (name, rule) == ("all rejects", "empty_text")
    p = 5_229 / 17_055
    assert [cell.text for cell in cells] == [share(1 - (1 - p) ** n) for n in found["batches"]]
    assert cells[3].text == "94.7\u202f%"
    assert cells[-1].text == ">\u202f99.9\u202f%"  # not all of them
    assert calculator({"rows_in": 5, "rows_kept": 5}) is None


@pytest.mark.slow
def test_the_steps_to_take_can_be_typed(folder: DataFolder) -> None:
    """Every command and setting that the page offers is accepted by the settings check."""
    audit = read_json(folder.audit)
    rejects = {**audit["rejects_by_rule"], "too_long": 9, "clipped": 9}
    split = read_json(folder.split)
    split["near_text"]["train+validation"]["shared"] = 3
    steps = what_to_do({**audit, "rejects_by_rule": rejects}, split, folder.root)
    steps += what_to_do({**audit, "group_by": "row", "rejects_by_rule": {"too_short": 1}}, split, folder.root)
    assert len({step.finding for step in steps}) >= 14
    commands = [shlex.split(command) for command in dict.fromkeys(step.command for step in steps) if command]
    composed = 0
    for words in commands:
        if words[0] == "grep":
            assert Path(words[-1]).is_file()
            continue
        if "--diff" in words:
            continue
        overrides = words[3:] if words[0] == "python" else ["data.manifest=rows.jsonl", *words]
        compose([word for word in overrides if not word.startswith("out=")])
        composed += 1
    assert composed >= 7


@pytest.mark.parametrize("grouped", [["speaker", "two words"], r'"a"\\_([^/]+)\d+[.]$'], ids=str)
def test_commands_mean_what_the_audit_was_made_with(grouped: str | list[str]) -> None:
    """Through the shell and Hydra: quotation marks, blanks, backslashes and commas."""
    manifest = "/my data/a,b's=.jsonl"
    audit = {"manifest": manifest, "group_by": grouped, "reject_share": 0.3, "clean": {"max_reject_share": 0.4}}
    settings = compose(shlex.split(data_settings(audit)))
    assert str(settings.data.manifest) == manifest
    assert settings.data.group_by == (tuple(grouped) if isinstance(grouped, list) else grouped)
    assert settings.clean.max_reject_share == 0.4


@pytest.mark.parametrize(("share_found", "asked"), [(0.2, []), (0.2001, ["clean.max_reject_share=0.21"])])
def test_what_is_refused_can_be_allowed(folder: DataFolder, share_found: float, asked: list[str]) -> None:
    audit = {"rows_in": 9, "reject_share": share_found, "clean": {"max_reject_share": 0.2}, "refused": ["too many"]}
    assert [step.command for step in what_to_do(audit, {}, folder.root) if "max_reject" in step.command] == asked


def test_nothing_to_mend_leaves_one_step(folder: DataFolder) -> None:
    audit = {
        "rows_in": 9, "rows_kept": 9, "rejects_by_rule": {"empty_text": 0}, "manifest": "/x/rows.jsonl",
        "splits": {"validation": {"groups": 7}}, "clean": {"trim_tail_silence": None},
    }  # fmt: skip
    (step,) = what_to_do(audit, {}, folder.root)
    assert step.command == "python -m voxtrain +recipe=preflight data.manifest=/x/rows.jsonl"


def test_every_rule_has_words_and_stands_in_the_documentation_in_its_order() -> None:
    clean = clean_rules()
    rules, reports = [*clean.rule_names(), WORD_ERROR_RATE], [*report_names(clean)]
    assert set(RULES) == {*rules, *reports}
    told = (DOCS / "data.md").read_text(encoding="utf-8")
    first, second = told.split("These are reported")
    cells = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in first.splitlines() if line.startswith("| `")]
    assert [rule for cell in cells for rule in cell if rule in rules] == rules[:-1]
    assert all(f"`{rule}`" in second for rule in [WORD_ERROR_RATE, *reports])


@pytest.mark.parametrize(
    ("part", "value", "kind", "words"),
    [
        ("overlaps", {"train+test": ["one", "two"]}, "no", "Groups in both train and test: 2"),
        ("overlaps", {"train+test": []}, "", "No group lies in two splits."),
        ("same_samples", None, "open", "Samples were not compared"),
        ("near_text", None, "open", "Texts were not compared"),
        (
            "near_text",
            {"score": 90, "train+test": {"shared": 2, "rows": {"train": 3, "test": 2}, "examples": []}},
            "open",
            "Texts that stand, or nearly stand, in both train and test: 2 (3 rows of train, 2 rows of test)",
        ),
        ("since_previous", {"folder": "old", "groups_moved": 0}, "", "No group changed its split since old."),
        ("since_previous", {"folder": "old", "groups_moved": 1, "moves": []}, "open", "1 group changed the split"),
    ],
)  # fmt: skip
def test_the_certificate_in_words(part: str, value: Any, kind: str, words: str) -> None:
    (check,) = certified({part: value})
    assert (check.kind, check.text.startswith(words)) == (kind, True), check.text
