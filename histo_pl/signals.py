"""Ending on Ctrl-C and SIGTERM: one line, the shell's status, and no process left behind."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from histo_pl.storage import discard_unfinished, is_first_process, remove_empty_folders

STOPS = (signal.SIGINT, signal.SIGTERM)
# SLURM's, some time before it ends a job (sbatch --signal=USR1@60): the job is requeued, and its line goes on.
REQUEUES = (signal.SIGUSR1,) if os.name == "posix" else ()
JOB = "SLURM_JOB_ID"  # in the environment of a job
ENDS_WITH_PARENT = "HISTO_PL_ENDS_WITH_PARENT"  # in the environment of a program that another one started
STARTED_BY = "HISTO_PL_PROCESS"  # in the environment: the last of these programs on the way to this one
PR_SET_PDEATHSIG = 1  # Linux's prctl(2)
LONGEST_REQUEST = 3.0  # seconds, to SLURM
LONGEST_FAREWELL = 5.0  # seconds, where nobody reads the line
HEAD_START = 2.0  # seconds that the first process of several has to speak, before the others go

CommandLine = Callable[..., str | None]  # this run's command with some keys changed; None if there is none

_last_words: Callable[[], str] | None = None
_suffix = ""


def set_stop_message(last_words: Callable[[], str] | None) -> None:
    """Choose what a stopped program says.

    Args:
        last_words: Makes a sentence of what is kept and how to go on; None: nothing was written.
    """
    global _last_words  # noqa: PLW0603  (signals are the process's, too)
    _last_words = last_words


def set_stop_suffix(suffix: str) -> None:
    """Choose what follows every message of a stopped program."""
    global _suffix  # noqa: PLW0603
    _suffix = suffix


def catch_stop_signals() -> None:
    """End this process in order on SIGINT or SIGTERM, whatever it is doing.

    A thread waits for the signal. The main thread would see it only between two steps of Python: not while it waits
    for another process's gradients, and Lightning's own handler for SIGTERM waits for the other processes, in vain.
    """
    if os.name != "posix":
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*STOPS, *(REQUEUES if JOB in os.environ else ())):
        signal.signal(number, lambda *_: None)
    starter = os.environ.get(STARTED_BY)
    os.environ[STARTED_BY] = str(os.getpid())
    if {"LOCAL_RANK", ENDS_WITH_PARENT} & os.environ.keys():
        die_with_parent()
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # its agent lies between
        if starter is not None and not by_torchrun and os.getppid() != int(starter):
            os._exit(1)  # it had ended before the kernel was asked
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()


def environment_of_child() -> dict[str, str]:
    """Return the environment of a program that is to end with this process."""
    own = {ENDS_WITH_PARENT: "1", STARTED_BY: str(os.getpid())}  # a job of submitit's inherits another's number
    return os.environ | own


def leave_stop_signals() -> None:
    """Leave the signals to handlers of another library, which ends its own work in order."""
    if os.name == "posix":
        signal.set_wakeup_fd(-1)


def die_with_parent(*_: object) -> None:
    """Let the kernel kill this process as soon as the one that started it has ended; on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(reading: int) -> None:
    number = 0
    while number not in (*STOPS, *REQUEUES):  # other signals with a handler come this way too
        number = os.read(reading, 1)[0]
    _end(signal.Signals(number))


def _requeue() -> str:
    """Ask SLURM to start this job again, and say what it answered."""
    job = os.environ[JOB]
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=LONGEST_REQUEST, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f". SLURM's job {job} could not be requeued ({error})"
    answer = f"could not be requeued ({done.stderr.strip()})" if done.returncode else "is requeued"
    return f". SLURM's job {job} {answer}."


def _end(number: signal.Signals) -> None:
    status = 128 + number  # as a shell counts
    if not is_first_process():
        time.sleep(HEAD_START)
        os._exit(status)
    giving_up = threading.Timer(LONGEST_FAREWELL, os._exit, (status,))
    giving_up.daemon = True
    giving_up.start()
    discard_unfinished()
    remove_empty_folders()
    for child in multiprocessing.active_children():
        with suppress(OSError):
            child.kill()
    words = "Nothing was written."
    with suppress(Exception):  # nothing may keep the process from ending
        words = _last_words() if _last_words is not None else words
    if number in REQUEUES:
        words += _requeue()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"\nStopped ({number.name}). {words}{_suffix}", file=sys.stderr, flush=True)
    os._exit(status)
