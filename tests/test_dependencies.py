"""Rooms of the package, and the rooms that each may import: no cycle, and prediction stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "histo_pl"
GROUND = set("appearance errors hardware images overlays pages probability signals storage tables".split())
ROOMS: dict[str, set[str]] = {  # beside the ground modules
    "data": set(),
    "models": set(),
    "evaluation": {"data"},
    "slides": set(),
    "inference": {"models", "slides"},
    "interop": {"models"},
    "serving": {"inference", "models", "slides"},
    "audit": {"data", "evaluation"},
    "training": {"data", "evaluation", "models"},
    "benchmark": {"data", "inference", "models", "training"},
    "cli": {"data", "evaluation", "models", "training"},
}
RUN: dict[str, set[str]] = {
    "interop/export.py": {"inference", "interop", "models"},
    "interop/model_card.py": {"evaluation", "interop", "models"},
    "interop/parity.py": {"data", "interop", "models"},
    "serving/run.py": {"inference", "interop", "models", "serving"},
    "evaluation/run.py": {"data", "evaluation", "inference", "models"},
    "evaluation/recalibrate.py": {"data", "evaluation", "inference", "models"},
    "evaluation/robustness.py": {"data", "evaluation", "inference", "models"},
    "evaluation/seen.py": {"data", "models"},
    "evaluation/explained.py": {"data", "evaluation", "models"},
}
HEAVY = {  # packages that a room does not know
    "data": {"hydra", "omegaconf"},
    "models": {"hydra", "omegaconf", "lightning"},
    "evaluation": {"hydra", "omegaconf", "lightning"},
    "slides": {"hydra", "omegaconf", "lightning", "torchvision"},
    "inference": {"hydra", "omegaconf", "lightning", "torchvision"},
    "interop": {"hydra", "omegaconf", "lightning", "torchvision"},
    "serving": {"hydra", "omegaconf", "lightning", "torchvision"},
    "audit": {"hydra", "omegaconf", "lightning"},
    "training": {"hydra", "omegaconf"},
    "benchmark": {"hydra", "omegaconf"},
    "cli": set(),
}


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("histo_pl.")} - {"__version__"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_above_it(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        names = imports_of(file)
        allowed = RUN.get(file.relative_to(PACKAGE).as_posix(), ROOMS[room]) | GROUND | {room}
        assert rooms_of(names) <= allowed, f"{file} imports {rooms_of(names) - allowed}"
        packages = {name.partition(".")[0] for name in names}
        assert not packages & HEAVY[room], f"{file} imports {packages & HEAVY[room]}"


@pytest.mark.parametrize("module", sorted(GROUND))
def test_a_ground_module_imports_no_room(module: str) -> None:
    names = imports_of(PACKAGE / f"{module}.py")
    assert rooms_of(names) <= GROUND
    assert not {name.partition(".")[0] for name in names} & {"hydra", "omegaconf", "lightning", "torchvision"}


def test_every_room_is_listed_and_the_graph_has_no_cycle() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == ROOMS.keys()
    order: list[str] = []
    while len(order) < len(ROOMS):
        free = [room for room in ROOMS if room not in order and ROOMS[room] <= set(order)]
        assert free, "a cycle"
        order += free


def test_inference_loads_nothing_that_makes_it_slow() -> None:
    code = "import sys, histo_pl.inference.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert not modules & {"lightning", "torchvision", "hydra", "omegaconf", "torchmetrics", "matplotlib"}
    assert not {name for name in loaded.stdout.split() if name.startswith("histo_pl.training")}
