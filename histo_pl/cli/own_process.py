"""Jobs of a sweep that use several devices: each is a command of its own, which Lightning repeats on each device."""

import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from histo_pl.cli.command_line import CONF, quote
from histo_pl.cli.program import job_arguments
from histo_pl.errors import UserError
from histo_pl.signals import environment_of_child, set_stop_message
from histo_pl.training.run_files import read_results

SINGLE = (1, "1", "auto")  # trainer.devices of one process, where the strategy is auto
LAST_LINES = 20  # of what a failed process said


def needs_own_process(config: DictConfig) -> bool:
    """Tell if a job of a sweep uses several processes: Lightning would start the whole sweep again in each."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return in_sweep and (config.trainer.strategy != "auto" or config.trainer.devices not in SINGLE)


def run_in_own_process(run_dir: str) -> dict[str, Any]:
    """Run this job of a sweep as a command of its own, in the job's folder.

    Args:
        run_dir: The job's folder.

    Returns:
        The contents of its results.json.

    Raises:
        UserError: It failed; its own words are the message.
    """
    folder = [f"run_dir={run_dir}", f"hydra.run.dir={quote(run_dir)}"]
    program = CONF.with_name(f"{HydraConfig.get().job.name}.py")  # argv[0] may be submitit's
    command = [sys.executable, str(program), *job_arguments(), *folder]
    set_stop_message(lambda: f"The job in {os.path.relpath(run_dir)} was not finished.")
    process = subprocess.Popen(
        command, env=environment_of_child(), stderr=subprocess.PIPE, text=True, errors="backslashreplace"
    )
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=LAST_LINES)
    for line in process.stderr:
        sys.stderr.write(line)
        said.append(line.strip())
    if process.wait():
        errors = [line for line in said if line.startswith("Error: ")]
        raise UserError(errors[-1].removeprefix("Error: ") if errors else " ".join(said)[-500:])
    return read_results(Path(run_dir))
