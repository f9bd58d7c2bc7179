"""Two of torchrun's agents with two processes each, on this machine."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, TINY_DEMO, compose_config, train

PER_AGENT = 2


@pytest.mark.slow
def test_two_agents_of_two_processes_write_one_folder(tmp_path: Path) -> None:
    folder, odd = tmp_path / "cwd", tmp_path / "My tiles (v2) [x], 1"
    folder.mkdir()
    train(compose_config("train", *TINY, *TINY_DEMO, f"data.root={tmp_path / 'demo'}", f"run_dir={tmp_path / 'warm'}"))
    (drawn,) = (tmp_path / "demo").iterdir()
    shutil.copytree(drawn, odd)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tiny = [option for option in TINY if option != "trainer=cpu"]
    own = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={PER_AGENT}", "trainer.num_nodes=2"]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={PER_AGENT}"]
    agent += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    program = [str(ROOT / "train.py"), *tiny, *own, "data=folder", f"data.root={odd}", "resume=auto"]
    agents = [
        subprocess.Popen(
            [*agent, f"--node-rank={rank}", *program],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [one.communicate(timeout=200)[0] for one in agents]
    assert [one.returncode for one in agents] == [0, 0], told
    (file,) = (folder / "outputs").glob("*/*/results.json")
    assert [path.name for path in file.parent.parent.iterdir()] == [file.parent.name]
    results = json.loads(file.read_text())
    assert results["run"]["processes"] == 2 * PER_AGENT
    assert results["test"]["tiles"] == results["data"]["parts"]["test"]["tiles"]
