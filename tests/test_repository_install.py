"""What is installed: the versions that are asked for and pinned, the commands, the wheel."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Version of every package in constraints.txt, under its canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds name==version alone"
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def requirements(pyproject: dict) -> list[Requirement]:
    """What pyproject.toml asks for, all extras and the build included."""
    project = pyproject["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    found = [Requirement(line) for line in (*project["dependencies"], *extras, *pyproject["build-system"]["requires"])]
    assert len(found) > 30
    return found


@pytest.fixture(scope="module")
def heavy(pyproject: dict) -> set[str]:
    """What `make setup` does not install: the extras that it leaves out."""
    (extras,) = re.findall(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    left_out = set(pyproject["project"]["optional-dependencies"]) - set(extras.split(","))
    assert left_out == {"asr", "voice"}
    lines = [line for extra in left_out for line in pyproject["project"]["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_torch_and_torchaudio_are_one_pair(requirements: list[Requirement], pins: dict[str, str]) -> None:
    asked = {r.name: str(r.specifier) for r in requirements}
    assert asked["torch"] == asked["torchaudio"] == f"=={pins['torch']}" == f"=={pins['torchaudio']}"


def test_constraints_are_plain_versions() -> None:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][a-z0-9.]*", line)] == []
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "://" not in text, "no registry host"


def test_every_requirement_is_pinned_inside_its_range(requirements: list[Requirement], pins: dict[str, str]) -> None:
    pinned = {str(r): pins.get(canonicalize_name(r.name)) for r in requirements}
    assert [name for name, version in pinned.items() if version is None] == []
    assert [str(r) for r in requirements if not r.specifier.contains(pinned[str(r)] or "")] == []


@pytest.mark.slow
def test_everything_that_comes_along_is_pinned(
    requirements: list[Requirement], heavy: set[str], pins: dict[str, str]
) -> None:
    waiting, seen, missing = [r for r in requirements if canonicalize_name(r.name) not in heavy], set(), set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        missing |= {name} - set(pins)
        for line in metadata.requires(name) or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
                waiting.append(inner)
    assert missing == set()
    assert len({name for name, _ in seen}) > 150


@pytest.fixture(scope="module")
def imported(heavy: set[str]) -> set[str]:
    """Distributions that the code imports, under their canonical names."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "voxtrain").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"voxtrain"}
    owners = {name.replace("-", "_"): [name] for name in heavy} | dict(metadata.packages_distributions())
    assert foreign <= set(owners), "something is imported that is not installed"
    return {canonicalize_name(owner) for name in foreign for owner in owners[name]}


@pytest.mark.slow
def test_every_package_that_is_imported_is_asked_for(requirements: list[Requirement], imported: set[str]) -> None:
    assert {"torch", "hydra-core", "pydantic", "voxcpm"} <= imported
    assert imported - {canonicalize_name(r.name) for r in requirements} == set()


@pytest.mark.slow
def test_every_package_that_is_asked_for_is_imported(pyproject: dict, imported: set[str]) -> None:
    asked = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    assert asked - imported == set()


def test_help_lists_every_command() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^make ([\w-]+) ", shown, re.MULTILINE))
    assert {"setup", "demo", "test", "test-slow", "test-gpu", "torture", "check", "help"} <= listed


@pytest.mark.slow
def test_the_wheel_holds_conf_and_templates_and_works(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, check=False, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("voxtrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    options = {f"voxtrain/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "conf").rglob("*.yaml")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "voxtrain").rglob("*.py")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "voxtrain").rglob("*.j2")}
    assert "voxtrain/conf/config.yaml" in options
    assert len(options) > 20
    assert templates
    described = {name for name in names if name.startswith("voxtrain-") and ".dist-info/" in name}
    assert names - described == options | modules | templates
    assert {name.split("/", 1)[1] for name in described} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}
    _compose_from(tmp_path / "installed")


def _compose_from(installed: Path) -> None:
    """The settings compose from the wheel's own conf/, away from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = (
        "from voxtrain import composition, settings\n"
        "print(settings.__file__, composition.conf_folder(), settings.compose(['+recipe=demo']).name, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    module, conf, name = done.stdout.split("\n")[:3]
    assert Path(module).is_relative_to(installed)
    assert Path(conf) == installed / "voxtrain" / "conf"
    assert name == "demo"
