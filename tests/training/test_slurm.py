"""A real SLURM of one node on this machine: Debian's slurm-wlm and munge, started and stopped here."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT, TINY, TINY_DEMO

pytestmark = pytest.mark.slow
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmdSpoolDir={folder}/d
StateSaveLocation={folder}/ctld
SlurmUser=root
SlurmdUser=root
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
NodeName=localhost CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES State=UP
"""
OPTIONS = [option for option in TINY if not option.startswith("trainer")]
QUIET = ["trainer.enable_progress_bar=false", *TINY_DEMO]
LONGEST = 300  # seconds for a job


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start SLURM, name it in the environment, and stop it; the suite's workers take turns, as its ports are fixed."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in PROGRAMS):
        pytest.skip("SLURM is not here, or this is not root: apt-get install slurm-wlm munge")
    turn = FileLock(Path(tempfile.gettempdir(), "histo_pl-test-slurm.lock"))
    turn.acquire()
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("ctld", "d"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONF.format(folder=folder))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    started = not is_running("munged")
    if started:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
    subprocess.run(["slurmctld"], check=True)
    subprocess.run(["slurmd", "-N", "localhost"], check=True)
    asked = ["sinfo", "-h"]  # it fails until the controller answers
    try:
        wait_until(lambda: "idle" in subprocess.run(asked, capture_output=True, text=True, check=False).stdout)
        yield
    finally:
        for name in ("d", "ctld"):
            number = (folder / f"{name}.pid").read_text().strip()
            os.kill(int(number), 15)
            wait_until(lambda number=number: not Path("/proc", number).exists())
        if started:
            subprocess.run(["pkill", "munged"], check=False)
            wait_until(lambda: not is_running("munged"))
        del os.environ["SLURM_CONF"]
        turn.release()


def is_running(name: str) -> bool:
    return subprocess.run(["pgrep", "-x", name], capture_output=True, check=False).returncode == 0


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until(done: object, seconds: float = LONGEST) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.5)


def submit(folder: Path, *arguments: str, tasks: int = 1) -> str:
    """Submit the recipe of docs/clusters.md, and return the job's number."""
    line = " ".join(arguments)
    (folder / "job.sh").write_text(
        f"#!/bin/bash\n#SBATCH --requeue --open-mode=append --signal=USR1@60 --output=log.txt\n"
        f"#SBATCH --ntasks-per-node={tasks}\n"
        f"srun {sys.executable} {ROOT / 'train.py'} {line}\n"
    )
    return subprocess.check_output(["sbatch", "--parsable", "job.sh"], cwd=folder, text=True).strip()


def test_a_job_that_is_told_to_stop_is_requeued_and_ends_by_itself(slurm: None, tmp_path: Path) -> None:
    job = submit(tmp_path, *OPTIONS, *QUIET, "trainer=cpu", "trainer.max_epochs=40", "resume=auto")
    wait_until(lambda: any((tmp_path / "outputs").glob("*/*/last.ckpt")))
    ask("scancel", "--signal=USR1", job)
    wait_until(lambda: "PENDING" in ask("scontrol", "show", "job", job))
    told = (tmp_path / "log.txt").read_text()
    assert "Stopped (SIGUSR1)." in told and f"SLURM's job {job} is requeued." in told
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: "COMPLETED" in ask("scontrol", "show", "job", job))
    (file,) = (tmp_path / "outputs").glob("*/*/results.json")
    assert json.loads(file.read_text())["epochs"] == 40
    assert "Going on in" in (tmp_path / "log.txt").read_text()
    assert not list(file.parent.glob("hpc_ckpt*"))


def test_two_processes_of_a_job_write_one_folder(slurm: None, tmp_path: Path) -> None:
    options = [*OPTIONS, *QUIET, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    job = submit(tmp_path, *options, "resume=auto", tasks=2)
    wait_until(lambda: any(end in ask("scontrol", "show", "job", job) for end in ("COMPLETED", "FAILED")))
    assert "COMPLETED" in ask("scontrol", "show", "job", job), (tmp_path / "log.txt").read_text()
    (file,) = (tmp_path / "outputs").glob("*/*/results.json")
    results = json.loads(file.read_text())
    assert results["run"]["processes"] == 2
    assert results["test"]["tiles"] == results["data"]["parts"]["test"]["tiles"]


@pytest.mark.parametrize(("trainer", "cpus"), [("cpu", 1), ("ddp_sim", 2)])
def test_a_sweep_by_submitit(slurm: None, trainer: str, cpus: int, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ["hydra/launcher=slurm", f"hydra.launcher.cpus_per_task={cpus}", "hydra.launcher.mem_gb=1"]
    options = [*OPTIONS, *QUIET, f"trainer={trainer}", "trainer.max_epochs=1", "optim.lr=1e-3,-1,1e-4"]
    program = [sys.executable, str(ROOT / "train.py"), "-m", *launcher, *options]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LONGEST)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (sweep,) = (tmp_path / "multirun").glob("*/*")
    finished = {file.parent.name: json.loads(file.read_text()) for file in sweep.glob("*/results.json")}
    assert sorted(finished) == ["0", "2"]
    assert all(results["run"]["processes"] == cpus for results in finished.values())
    assert not (tmp_path / "outputs").exists()
    told = done.stderr.splitlines()[-1]
    assert "optim.lr=-1" in told and told.endswith("Expected a number of at least 0. Received: -1")


def test_a_sweep_by_submitit_is_requeued_and_ends_by_itself(slurm: None, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
    options = [*OPTIONS, *QUIET, "trainer=cpu", "trainer.max_epochs=40", "optim.lr=1e-3", "resume=auto"]
    program = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "-m", *launcher, *options], cwd=tmp_path)
    wait_until(lambda: any((tmp_path / "multirun").glob("*/*/0/last.ckpt")))
    (number,) = ask("squeue", "-h", "-o", "%A").split()
    ask("scancel", "--signal=USR2", number)
    wait_until(lambda: "PENDING" in ask("scontrol", "show", "job", number))
    ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    assert program.wait(LONGEST) == 0
    (file,) = (tmp_path / "multirun").glob("*/*/0/results.json")
    assert json.loads(file.read_text())["epochs"] == 40
    (told,) = (tmp_path / "multirun").glob("*/*/.submitit/*/*_log.out")
    assert "Going on in" in told.read_text() + told.with_suffix(".err").read_text()
    assert not any((tmp_path / "outputs").glob("*/*/*"))


def test_tasks_that_are_no_processes_of_the_run_are_refused(slurm: None, tmp_path: Path) -> None:
    job = submit(tmp_path, *OPTIONS, *QUIET, "trainer=cpu", tasks=2)
    wait_until(lambda: any(end in ask("scontrol", "show", "job", job) for end in ("COMPLETED", "FAILED")))
    told = (tmp_path / "log.txt").read_text()
    assert "Received: 2 tasks for 1 processes" in told and "Traceback" not in told
    assert not any((tmp_path / "outputs").glob("*/*/*"))
