"""Stop a training by SIGTERM and Ctrl-C in each of its phases: seconds, exit status, last line, processes left.

python docs/promises/signals.py
"""

import argparse
import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import TINY, Program, processes_left

LARGE = ("data.tile_size=384",)  # takes a while to decode


def _data_check(program: Program, run: Path) -> None:
    """Wait until the libraries are loaded, about: the tiles are found, hashed and split next."""
    maps = Path(f"/proc/{program.process.pid}/maps")
    while program.process.poll() is None and "matplotlib" not in maps.read_text():
        time.sleep(0.02)
    time.sleep(0.1)


def _decoding(program: Program, run: Path) -> None:
    while program.process.poll() is None and not any((run.parent / "cache").glob("tiles/.*.part.tiles")):
        time.sleep(0.01)


def _embedding(program: Program, run: Path) -> None:
    while program.process.poll() is None and "Embedding" not in program.output():
        time.sleep(0.01)


def _training(program: Program, run: Path) -> None:
    program.wait_for(run / "last.ckpt")
    time.sleep(1)


def _test(program: Program, run: Path) -> None:
    program.wait_for(run / "last.ckpt")
    time.sleep(0.3)


PHASES: dict[str, tuple[Callable[[Program, Path], None], tuple[str, ...]]] = {
    "data check": (_data_check, ()),
    "decoding": (_decoding, (*LARGE, "data.cache=disk")),
    "embedding": (_embedding, ("experiment=linear_probe", "embeddings.views=20")),
    "training": (_training, ("trainer.max_epochs=500",)),
    "test": (_test, ("trainer.max_epochs=1",)),
}
TRAINERS = {"one process": ("trainer.accelerator=cpu",), "ddp_sim": ("trainer=ddp_sim",)}


def main() -> None:
    """Print a row a case."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| processes | phase | signal | to | seconds | status | processes left | tracebacks | last line |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        Program("train.py", [*TINY, "trainer=cpu", "debug=fast", "run_dir=tiles"], Path(folder)).process.wait()
        Program("train.py", [*TINY, *LARGE, "trainer=cpu", "debug=fast", "run_dir=large"], Path(folder)).process.wait()
        signals = (signal.SIGTERM, signal.SIGINT)
        cases = itertools.product(TRAINERS, PHASES, signals, ("parent", "group"))
        for number, (trainer, phase, sent, to) in enumerate(cases):
            if (trainer, phase) != ("ddp_sim", "embedding"):  # which is refused: it takes one process
                print(_row(number, trainer, phase, sent, to, Path(folder)), flush=True)


def _row(number: int, trainer: str, phase: str, sent: signal.Signals, to: str, folder: Path) -> str:
    run = folder / f"run{number}"
    for cached in (folder / "cache").glob("*/*"):
        cached.unlink() if cached.is_file() else shutil.rmtree(cached)
    reached, options = PHASES[phase]
    program = Program("train.py", [*TINY, *TRAINERS[trainer], *options, f"run_dir={run.name}"], folder)
    reached(program, run)
    seconds = program.stop(sent, group=to == "group")
    left, faults = len(processes_left(program.process.pid)), program.output().count("Traceback")
    facts = (trainer, phase, sent.name, to, f"{seconds:.1f}", program.process.returncode, left, faults)
    return f"| {' | '.join(map(str, facts))} | {program.last_line()[:150]} |"


if __name__ == "__main__":
    main()
