"""The house's floors: which part may know of which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "histo_pl"
FORBIDDEN = {
    "images.py": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.models"),
    "models": ("hydra", "omegaconf", "histo_pl.data", "histo_pl.training", "histo_pl.inference"),
    "data": ("hydra", "omegaconf", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "evaluation": ("hydra", "omegaconf", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "inference": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.training"),
    "evidence.py": ("hydra", "omegaconf", "lightning", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "audit.py": ("hydra", "omegaconf", "lightning", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "evaluate.py": ("lightning", "histo_pl.models", "histo_pl.training"),
    "summarize.py": ("lightning", "torch", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "speed.py": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.models"),
    "start.py": ("hydra", "omegaconf", "histo_pl.training"),
    "callbacks.py": ("hydra", "omegaconf", "histo_pl.training", "histo_pl.inference"),
    "embeddings.py": ("hydra", "omegaconf", "lightning", "histo_pl.models", "histo_pl.training", "histo_pl.inference"),
    "keras_io.py": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.inference"),
    "convert.py": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.training"),
    "benchmark": ("hydra", "omegaconf", "histo_pl.training"),
    "__main__.py": ("hydra", "omegaconf", "lightning", "torch", "histo_pl.data", "histo_pl.models"),
    "storage.py": ("hydra", "omegaconf", "lightning", "torchvision", "histo_pl.data", "histo_pl.models"),
    "stopping.py": ("hydra", "omegaconf", "lightning", "torch", "histo_pl.data", "histo_pl.models"),
    "program.py": ("lightning", "torch", "histo_pl.data", "histo_pl.models", "histo_pl.training"),
    "sweep.py": ("lightning", "torch", "histo_pl.data", "histo_pl.models", "histo_pl.training"),
    "run_folder.py": ("omegaconf", "histo_pl.data", "histo_pl.models", "histo_pl.training"),
    "command_line.py": ("hydra", "omegaconf", "torch", "histo_pl.data", "histo_pl.models"),
}


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("place", FORBIDDEN)
def test_a_floor_does_not_know_what_stands_on_it(place: str) -> None:
    path = PACKAGE / place
    for file in [path] if path.is_file() else path.rglob("*.py"):
        known = {name for name in imports_of(file) if name.startswith(FORBIDDEN[place])}
        assert not known, f"{file} imports {known}"


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - FORBIDDEN.keys() == {"__init__.py", "errors.py", "training.py"}


def test_inference_loads_nothing_that_makes_it_slow() -> None:
    code = "import sys, histo_pl.inference; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert not modules & {"lightning", "torchvision", "hydra", "omegaconf", "torchmetrics", "matplotlib"}
    assert "histo_pl.training" not in loaded.stdout.split()
