"""The house: the order of its rooms, what each may import, how large a file and a function may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "voxtrain"

FIRST = ("fault", "durable", "progress", "run_folder", "batch", "manifest", "statistics")
"""What `report` may import; each of these imports only those before it."""
ROOMS = (*FIRST, "data", "optim", "ranks", "model", "memory", "checkpoint", "metrics", "validation", "listening")
"""A room imports only those before it."""
TOP = {
    "settings",
    "composition",
    "door",
    "environment",
    "run_record",
    "run_plan",
    "assembly",
    "preflight",
    "restart",
    "sweep_jobs",
    "fit",
    "train",
}
TOP |= {"fit", "train", "doctor", "__main__"}
"""What stands above the rooms: no room imports it."""
SETTINGS = {"settings", "composition", "door", "run_plan"}
"""What the doors of rooms may import besides."""
TENSORS = {"torch", "torchaudio", "pytorch_lightning", "lightning", "voxcpm", "bitsandbytes", "transformers"}
"""Packages that load torch."""


def python_files(folder: Path = PACKAGE) -> list[Path]:
    """Every Python file under `folder`, and there are some."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"no Python file under {folder}"
    return files


def module_name(path: Path) -> str:
    """`voxtrain.data.order` for voxtrain/data/order.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`data` for voxtrain.data.order; empty for voxtrain itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imported_modules(path: Path, *, for_types: bool = False) -> set[str]:
    """Every module that a file imports, anywhere in it; `for_types` adds what only a type checker sees."""
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return scan(path.read_text(encoding="utf-8"), package, for_types=for_types)


def scan(source: str, package: str, *, for_types: bool = False) -> set[str]:
    """The same for a text that stands in `package`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not for_types:
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_from_import(package, node))
        for child in children:
            visit(child)

    visit(ast.parse(source))
    return found


def _from_import(package: str, node: ast.ImportFrom) -> set[str]:
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *filter(None, [node.module])])
    if base == "voxtrain":  # `from voxtrain import settings` imports a room; `__version__` is a value
        return {f"voxtrain.{alias.name}" for alias in node.names if not alias.name.startswith("_")}
    return {base}


def rooms_among(modules: set[str]) -> set[str]:
    """The rooms (and modules beside them) of voxtrain among imported modules."""
    return {room_of(module) for module in modules if module.split(".")[0] == "voxtrain"} - {""}


def rooms_imported(path: Path, *, for_types: bool = False) -> set[str]:
    """The rooms (and modules beside them) of voxtrain that a file imports."""
    return rooms_among(imported_modules(path, for_types=for_types))


def allowed_rooms(path: Path) -> set[str]:
    """What a file may import of voxtrain."""
    room = room_of(module_name(path))
    if room == "train":
        return {*ROOMS, *TOP} - {"validation"}
    if room not in {*ROOMS, "report"}:
        return {*ROOMS, "report", *TOP}
    before = set(FIRST) if room == "report" else set(ROOMS[: ROOMS.index(room)])
    return {room} | before | (SETTINGS if path.name == "__main__.py" else set())


def test_every_room_is_there_and_has_a_place_in_the_order() -> None:
    found = {room_of(module_name(path)) for path in python_files()} - {""}
    assert found - TOP == {*ROOMS, "report"}
    assert found >= {"settings", "train"}


def test_no_room_imports_a_later_one() -> None:
    checked = [path for path in python_files() if path != PACKAGE / "__init__.py"]
    wrong = {
        module_name(path): sorted(late) for path in checked if (late := rooms_imported(path) - allowed_rooms(path))
    }
    assert wrong == {}
    links = [(path, room) for path in checked for room in rooms_imported(path) if room != room_of(module_name(path))]
    assert len(links) > 50, "the scan found hardly any import between rooms, so it proves nothing"


@pytest.mark.slow
def test_rooms_do_not_see_the_settings_even_as_types() -> None:
    rooms = [p for room in (*ROOMS, "report") if (PACKAGE / room).is_dir() for p in python_files(PACKAGE / room)]
    inner = [path for path in rooms if path.name != "__main__.py"]
    assert len(inner) > 30
    assert [module_name(path) for path in inner if "settings" in rooms_imported(path, for_types=True)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import voxtrain.train", {"train"}),
        ("from voxtrain import settings, __version__", {"settings"}),
        ("def late():\n    from voxtrain.model.loss import x", {"model"}),
        ("from ..optim import adamw", {"optim"}),
        ("from . import order", {"data"}),
        ("if TYPE_CHECKING:\n    import voxtrain.model\nelse:\n    import voxtrain.memory", {"memory"}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import voxtrain.model", set()),
        ("class A:\n    try:\n        import voxtrain.report\n    except ImportError:\n        pass", {"report"}),
    ],
)
def test_the_scan_sees_imports_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert rooms_among(scan(source, "voxtrain.data")) == expected


@pytest.mark.slow
def test_one_file_alone_imports_voxcpm() -> None:
    users = [p.relative_to(PACKAGE).as_posix() for p in python_files() if "voxcpm" in _packages(p, for_types=True)]
    assert users == ["model/upstream.py"]


@pytest.mark.slow
def test_text_rooms_import_no_tensors() -> None:
    files = [path for room in ("manifest", "report") for path in python_files(PACKAGE / room)]
    assert {module_name(path): found for path in files if (found := _packages(path) & TENSORS)} == {}
    _run_without_torch([module_name(path) for path in files])


@pytest.mark.slow
def test_what_the_settings_check_imports_loads_no_torch() -> None:
    options = sorted((ROOT / "conf").rglob("*.yaml"))
    targets = {t for path in options for t in re.findall(r"_target_: ([\w.]+)\.\w+$", path.read_text(), re.MULTILINE)}
    assert len(targets) >= 12
    _run_without_torch([*sorted(targets), "voxtrain.__main__", "voxtrain.preflight"])


def _run_without_torch(modules: list[str]) -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'{name} loads torch'"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_statistics_need_numpy_alone() -> None:
    found = set().union(*(_packages(path) for path in python_files(PACKAGE / "statistics")))
    assert found - set(sys.stdlib_module_names) - {"voxtrain"} == {"numpy"}


def _packages(path: Path, *, for_types: bool = False) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(path, for_types=for_types)}


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "core", "base"}
    assert [
        str(p) for p in python_files() if drawers & {part.lower() for part in p.relative_to(ROOT).with_suffix("").parts}
    ] == []


def test_files_and_functions_are_small() -> None:
    long = []
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        long += [f"{path}: {lines} lines"] if lines > 300 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                long += [f"{path}:{node.lineno} {node.name}: {length} lines"] if length > 50 else []
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path) for path in python_files() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
