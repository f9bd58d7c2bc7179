"""Programs of Hydra: started as typed, ended in order, and sweeps that go on after a failing job."""

import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import OmegaConf

from histo_pl.cli.command_line import (
    COLUMNS,
    LITERAL_KEYS,
    message_of,
    one_line_errors,
    prepare_process,
    quote_literals,
)
from histo_pl.cli.mistakes import describe_mistake
from histo_pl.signals import set_stop_message, set_stop_suffix
from histo_pl.storage import atomic_write_text, new_folder, remove_empty_folders

REQUEUED = -1  # the status by which submitit leaves a job that it has asked SLURM to start again
FAILED = "failed.txt"  # in a job's folder: its overrides, and why it failed


def _run_folder(otherwise: str) -> str:
    """Return the folder that Hydra made for the run; `otherwise` where it runs nothing, as with --cfg."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return otherwise
    return HydraConfig.get().runtime.output_dir


def _fast_precision(accelerator: str) -> str:
    from histo_pl.hardware import fast_precision  # it loads PyTorch

    return fast_precision(accelerator)


OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("fast_precision", _fast_precision, replace=True)
OmegaConf.register_new_resolver("share_of", lambda share, whole: math.ceil(share * whole), replace=True)


def run_program(main: Callable[[], Any], rewrite: Callable[[Sequence[str]], list[str]] = list) -> None:
    """Run one of the programs: its arguments as typed, its errors in one line, ended in order by a signal.

    Args:
        main: A function decorated by `hydra.main`.
        rewrite: Changes the arguments before Hydra parses them.

    Raises:
        SystemExit: With the message of an error, exit status 1.
    """
    prepare_process()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    with one_line_errors():
        sys.argv[1:] = quote_literals(rewrite(sys.argv[1:]), dict(os.environ))
        try:
            main()
        except InstantiationException:
            raise
        except CompactHydraException as error:
            raise SystemExit(describe_mistake(error, Path(sys.argv[0]).stem)) from None


@contextmanager
def job() -> Iterator[None]:
    """Run the body of a program; in a sweep a job that fails says so, notes it in its folder, and the others go on.

    Raises:
        SystemExit: It failed, outside of a sweep; or submitit has it started again.
    """
    set_stop_message(lambda: f"Nothing was written. Start again with: {command_line()}")
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        with one_line_errors(), _without_empty_folders():
            yield
        return
    set_stop_suffix("\nThe sweep's later jobs were not run.")
    note = Path(HydraConfig.get().runtime.output_dir, FAILED)
    note.unlink(missing_ok=True)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == REQUEUED:
            raise
        message = message_of(error)
        if message is None:
            message = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        else:
            print(message, file=sys.stderr, flush=True)
        with atomic_write_text(note) as stream:
            stream.write(f"{' '.join(HydraConfig.get().overrides.task)}\n{' '.join(message.split())}\n")


@contextmanager
def _without_empty_folders() -> Iterator[None]:
    """Remove Hydra's folder where the run was refused, or has `run_dir`."""
    try:
        yield
    finally:
        remove_empty_folders()


def command_line(*changes: str) -> str | None:
    """Write the command line of this run again, with some keys changed.

    Args:
        *changes: Such as `resume=outputs/DAY/TIME/last.ckpt`; the value is taken literally.

    Returns:
        A line for a shell, of a sweep that of this job alone; None where no program runs but Python code.
    """
    if not HydraConfig.initialized():
        return None
    changed = {change.partition("=")[0] for change in changes}
    kept = [one for one in job_arguments() if one.lstrip("+").partition("=")[0] not in changed]
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *kept, *changes])


def job_arguments() -> list[str]:
    """Return the arguments of this run as they are typed, of a sweep those of this job alone."""
    config = HydraConfig.get()
    if config.mode == RunMode.MULTIRUN:
        own = ["hydra.mode=RUN"]  # a configuration may ask for a sweep
    else:
        own = [one for one in config.overrides.hydra if not one.startswith("hydra.mode=")]
    return [_as_typed(one) for one in (*config.overrides.task, *own)]


def _as_typed(override: str) -> str:
    """Undo `quote_literals`, where it was at work."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in LITERAL_KEYS and not key.lstrip("+").startswith(COLUMNS):
        return override
    if not value.startswith("'"):
        return override
    literal = OmegaConf.create({"value": OverridesParser.create().parse_override(override).value()}).value
    return f"{key}={literal}"
