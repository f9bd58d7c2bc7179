"""A signal ends a program at once, with one line, the shell's status and no process left."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, TINY_DEMO

SLEEPER = """
import multiprocessing, pathlib, sys, time
from histo_pl.signals import catch_stop_signals, die_with_parent, set_stop_message
from histo_pl.storage import atomic_write

def wait():
    die_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    catch_stop_signals()
    set_stop_message(lambda: "All is kept.")
    multiprocessing.get_context("fork").Process(target=wait).start()
    with atomic_write(pathlib.Path("file.txt")) as unfinished:
        unfinished.write_text("half")
        print("ready", flush=True)
        while True:
            sum(range(1000))
"""


def processes_of(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [state for found, state in rows if int(found) == group and not state.startswith("Z")]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_processes_and_leaves_nothing_half_written(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "file.txt").write_text("whole")
    program = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    program.send_signal(sent)
    _, errors = program.communicate(timeout=20)
    assert program.returncode == status
    assert errors == f"\nStopped ({sent.name}). All is kept.\n"
    assert not processes_of(program.pid)
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "whole"


@pytest.mark.parametrize("trainer", ["cpu", pytest.param("ddp_sim", marks=pytest.mark.slow)])
def test_a_stopped_training_names_the_command_that_goes_on(tmp_path: Path, demo_root: Path, trainer: str) -> None:
    tiny = [option for option in TINY if option not in ("trainer=cpu", "data.num_workers=0", "trainer.max_epochs=1")]
    options = [*tiny, *TINY_DEMO, f"trainer={trainer}", "data.num_workers=1", "trainer.max_epochs=1000"]
    command = [sys.executable, str(ROOT / "train.py"), *options, f"data.root={demo_root}", "run_dir=run"]
    program = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "run" / "last.ckpt").exists() and program.poll() is None:
        time.sleep(0.1)
    program.terminate()
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 143, errors
    assert "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("Stopped (SIGTERM). Epoch ")
    assert "last.ckpt, best.ckpt" in line
    assert line.endswith(f"trainer.max_epochs=1000 data.root={demo_root} run_dir=run resume=run/last.ckpt")
    assert not processes_of(program.pid)


ORPHAN = """
import os, subprocess, sys
from histo_pl.signals import catch_stop_signals
catch_stop_signals()
late = "import time; time.sleep(1); import histo_pl.signals as signals; signals.catch_stop_signals(); print('here')"
subprocess.Popen([sys.executable, "-c", late], env=os.environ | {"LOCAL_RANK": "1"})
os._exit(0)
"""


def test_a_process_whose_starter_has_gone_before_it_asked_ends_too() -> None:
    """The kernel tells of the end of a starter only those that asked before."""
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""  # it waits for the late process too, whose output it is
