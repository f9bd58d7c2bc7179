"""Slow jobs: the suite at the oldest versions that are allowed, and with workers that are spawned."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run_suite(python: str, *arguments: str, **environment: str) -> None:
    command = [python, "-m", "pytest", "-q", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    print(done.stdout.splitlines()[-1])


def test_the_suite_passes_with_spawned_workers() -> None:
    """As on macOS and Windows: what a worker gets is pickled."""
    run_suite(sys.executable, "tests/data", "tests/training", HISTO_PL_START_METHOD="spawn")


def test_the_suite_passes_at_the_declared_floors(tmp_path: Path) -> None:
    floors = tmp_path / "floors.txt"
    floors.write_text("".join(f"{name}=={version}\n" for name, version in declared_floors().items()))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(floors), "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    run_suite(python)


def declared_floors() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    matches = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement) for requirement in needed]
    tools = ("ruff", "pyright")
    return {match[1]: match[2] for match in matches if match is not None and match[1] not in tools}
