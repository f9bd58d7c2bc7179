"""Kill one and the same line with resume=auto at random moments, repeat it until it ends, and compare the end.

python docs/promises/auto.py [--kills 20] [--variants cpu ddp_sim]
"""

import argparse
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from common import TINY, Program, differences

VARIANTS = {"cpu": ("trainer=cpu",), "ddp_sim": ("trainer=ddp_sim",)}
SOONEST = 1.0  # seconds after a start


def main() -> None:
    """Print a row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each variant (default: 20)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    options = parser.parse_args()
    print("| variant | kills | runs that ended | identical to the undisturbed run | folders of runs |")
    print("|---|---|---|---|---|")
    for name in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(name, options.kills, random.Random(options.seed), Path(folder)), flush=True)


def _row(name: str, wanted: int, draw: random.Random, folder: Path) -> str:
    arguments = (*TINY, *VARIANTS[name])
    for run in ("first", "whole"):  # the first draws the tiles and fills the caches
        whole = Program("train.py", [*arguments, f"run_dir={run}"], folder)
        if whole.process.wait() != 0:
            raise SystemExit(whole.output())
        longest = time.monotonic() - whole.started
    kills = ended = identical = folders = 0
    while kills < wanted:
        kills += _kill_until_ended(arguments, draw, longest, folder, wanted - kills)
        runs = [file.parent for file in (folder / "outputs").glob("*/*/results.json")]
        folders += len(list((folder / "outputs").glob("*/*/config.yaml")))
        ended += 1
        found = differences(folder / "whole", runs[0])
        identical += not found
        if found:
            print(f"  {name}: {', '.join(found)}", flush=True)
        shutil.rmtree(folder / "outputs")
    return f"| {name} | {kills} | {ended} | {identical} | {folders} |"


def _kill_until_ended(arguments: tuple[str, ...], draw: random.Random, longest: float, folder: Path, most: int) -> int:
    """Repeat the line until it ends by itself, killed at random moments at most so many times; return their number."""
    kills = 0
    while True:
        program = Program("train.py", [*arguments, "resume=auto"], folder)
        moment = draw.uniform(SOONEST, longest)
        while program.process.poll() is None and (kills >= most or time.monotonic() - program.started < moment):
            time.sleep(0.05)
        if program.process.poll() is None:
            program.stop(signal.SIGKILL, group=draw.random() < 0.5)  # noqa: PLR2004  (all its processes, or the first)
            kills += 1
        elif program.process.returncode != 0:
            raise SystemExit(program.output())
        else:
            return kills


if __name__ == "__main__":
    main()
