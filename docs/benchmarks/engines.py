"""Compare Ray's processes and sixteen shards with one process: seconds, and the largest difference of an answer.

python docs/benchmarks/engines.py TILES RUN [--count 2500] [--rounds 3]

TILES is a folder of tiles, RUN a training's folder. Each contender is predict.py as a whole, its start included, on the
same machine, over links to the tiles; they take turns. Needs pip install -e '.[ray]'.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from histo_pl.benchmark.workers import ratio
from histo_pl.images import find_files, is_image

ROOT = Path(__file__).parents[2]
SHARDS = 16
CONTENDERS = ("one process", "engine=ray", f"{SHARDS} shards in turn, merged")


def main() -> None:
    """Print a row a contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--count", type=int, default=2500, help="tiles to answer (default: 2500)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_tiles(options.tiles, folder / "tiles", options.count)
        for _ in range(options.rounds):
            for contender in CONTENDERS:
                started = time.monotonic()
                ask(contender, options.run.resolve(), folder)
                seconds[contender].append(time.monotonic() - started)
        print("| contender | seconds: median (range) | tiles a second | ratio | largest difference |")
        print("|---|---|---|---|---|")
        for contender, measured in seconds.items():
            print(row(contender, measured, seconds[CONTENDERS[0]], folder, options.count), flush=True)


def link_tiles(tiles: Path, folder: Path, count: int) -> None:
    """Link so many tiles, some of them more than once, into a folder."""
    files = [file for file in find_files(tiles) if is_image(file)]
    for number, file in enumerate(islice(cycle(files), count)):
        link = folder / str(number % 100) / f"{number}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def table_of(contender: str, folder: Path) -> Path:
    """Name the table that a contender writes."""
    return folder / ("shards/predictions.csv" if "shards" in contender else f"{contender}.csv".replace(" ", "-"))


def ask(contender: str, run: Path, folder: Path) -> None:
    """Answer for all tiles afresh."""
    table = table_of(contender, folder)
    table.unlink(missing_ok=True)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    command = [sys.executable, str(ROOT / "predict.py"), f"ckpt={run / 'best.ckpt'}", "img=tiles"]
    if "shards" not in contender:
        start([*command, f"out={table}", *([contender] if "=" in contender else [])], folder)
        return
    for number in range(1, SHARDS + 1):
        start([*command, "out=shards", f"shard={number}/{SHARDS}"], folder)
    start([sys.executable, "-m", "histo_pl", "merge", "shards"], folder)
    shutil.copy(table, folder / "merged.csv")


def start(command: list[str], folder: Path) -> None:
    """Run a program to its end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def row(contender: str, measured: list[float], first: list[float], folder: Path, count: int) -> str:
    """Compare a contender's table and times with those of one process."""
    median = statistics.median(measured)
    merged = folder / "merged.csv"
    wanted = read(table_of(CONTENDERS[0], folder))
    found = read(merged if "shards" in contender else table_of(contender, folder))
    if list(found) != list(wanted) or len(found) != count:
        raise SystemExit(f"{contender}: not the files of one process, or another order")
    worst = max(abs(found[file] - wanted[file]) for file in wanted)
    spread = f"{median:.1f} ({min(measured):.1f} to {max(measured):.1f})"
    return f"| {contender} | {spread} | {count / median:.0f} | {ratio(measured, first):.2f} | {worst:.1e} |"


def read(table: Path) -> dict[str, float]:
    """Read each file's probability, in the table's order."""
    with table.open(encoding="utf-8", newline="") as stream:
        return {entry["file"]: float(entry["probability"]) for entry in csv.DictReader(stream)}


if __name__ == "__main__":
    main()
