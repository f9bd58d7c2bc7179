"""Measure a start with very many tiles: seconds, memory, and how often each file is read.

python docs/benchmarks/scale.py --tiles 300000   # needs 100 KB a tile on the disk; about half an hour on 2 cores
python docs/benchmarks/scale.py --tiles 3000     # a first look
python docs/benchmarks/scale.py --audit exact --tiles 100000            # the audit of as many, exact copies alone
python docs/benchmarks/scale.py --audit altered --tiles 20000 --size 96   # altered copies too; each tile is drawn

The tiles are one drawn tile, as PNGs that differ in a text chunk alone, so that their bytes differ and their pixels do
not. A "start" is all that a training does before its first epoch: the files are found, checked and split, copies are
looked for, and the colours of the baseline are at hand. The comparison is one parallel read and decode of each file,
with as many threads, and nothing else. All three are timed in processes of their own, twice the comparison: before and
after, as a machine's speed drifts.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.hardware import usable_cores
from histo_pl.images import list_files, read_rgb

CHUNK = 64  # files a task
TILES_A_CASE = 500
AUDITS = ("exact", "altered")


def make_tiles(root: Path, tiles: int, size: int) -> None:
    """Write one tile many times, each with a text chunk of its own before the pixels."""
    generator = np.random.default_rng(0)
    drawn = draw_tile(generator, Stain.draw(generator), malignant=True, size=size)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(drawn).save(file.name, compress_level=1)
        png = Path(file.name).read_bytes()
    after_header = 33  # the signature and IHDR, which is to stand first
    for number in range(tiles):
        text = b"tEXtnumber\0" + str(number).encode()
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        case = number // TILES_A_CASE
        folder = root / ("malignant" if case % 2 else "benign") / f"case{case}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png[:after_header] + chunk + png[after_header:])


def draw_tiles(root: Path, tiles: int, size: int) -> None:
    """Draw every tile for itself, so that none is a copy of another."""
    with ProcessPoolExecutor(usable_cores()) as pool:
        list(pool.map(_draw, *zip(*((root, number, size) for number in range(tiles)), strict=True), chunksize=CHUNK))


def _draw(root: Path, number: int, size: int) -> None:
    generator = np.random.default_rng(number)
    malignant = bool(number % 2)
    folder = root / ("malignant" if malignant else "benign")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_tile(generator, Stain.draw(generator), malignant=malignant, size=size)
    Image.fromarray(drawn).save(folder / f"{number}.png", compress_level=1)


def read_and_decode(root: Path) -> None:
    """Read and decode each file in parallel: what no start can do without."""
    files = list(list_files(root))

    def read(start: int) -> None:
        for file in files[start : start + CHUNK]:
            read_rgb(file)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(read, range(0, len(files), CHUNK)))


def start_training(root: Path, memory: Path) -> None:
    """Do all that a training does before its first epoch."""
    from histo_pl.data import HistologyDataModule

    data = HistologyDataModule(root, group_regex=r"case\d+", inspections=memory, num_workers=0)
    data.setup()
    data.leak_warnings()
    data.summary()
    data.colours_of([tile.path for tile in data.tiles])


def audit(root: Path, memory: Path, *, exact_only: bool) -> None:
    """Audit the tiles."""
    from histo_pl.audit.run import audit_tiles

    print(audit_tiles(root, exact_only=exact_only, out=memory.with_name("audit")))


def anonymous_memory() -> float:
    """Return this process's anonymous memory in GB: mapped files are the system's cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e9
    return float("nan")


def measure(task: str, root: Path, memory: Path) -> dict[str, float]:
    """Run one task in this process; count the openings of each tile, and watch the memory."""
    opened: Counter[str] = Counter()
    prefix = str(root)
    sys.addaudithook(lambda event, args: opened.update([str(args[0])]) if event == "open" else None)
    before, peak, done = anonymous_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], anonymous_memory())

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    tasks = {"read": lambda: read_and_decode(root), "start": lambda: start_training(root, memory)}
    tasks |= {kind: lambda: audit(root, memory, exact_only=task == "exact") for kind in AUDITS}
    tasks[task]()
    seconds = time.perf_counter() - started
    done.set()
    reads = [count for name, count in opened.items() if name.startswith(prefix) and name.endswith(".png")]
    return {"seconds": seconds, "gigabytes": peak[0], "before": before, "most_reads": max(reads, default=0)}


def in_a_process(task: str, root: Path, memory: Path) -> dict[str, float]:
    """Run one task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--root", str(root), "--memory", str(memory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(tiles: int, size: int, folder: Path) -> None:
    """Make the tiles, and print the table."""
    root, memory = folder / "tiles", folder / "inspections.sqlite"
    make_tiles(root, tiles, size)
    names = ("read and decode", "first start", "read and decode", "later start")
    found = [in_a_process("start" if "start" in name else "read", root, memory) for name in names]
    bare = (found[0]["seconds"] + found[2]["seconds"]) / 2
    remembered = memory.stat().st_size / 1e6
    print(f"{tiles} tiles of {size}x{size} pixels, {usable_cores()} cores; {remembered:.0f} MB remembered")
    print("| task | seconds | ratio | anonymous memory, GB | reads a file, at most |\n|---|---|---|---|---|")
    for name, one in zip(names, found, strict=True):
        ratio = one["seconds"] / bare
        print(f"| {name} | {one['seconds']:.1f} | {ratio:.2f} | {one['gigabytes']:.2f} | {one['most_reads']:.0f} |")


def report_audit(kind: str, tiles: int, size: int, folder: Path) -> None:
    """Make the tiles, audit them, and print time and memory."""
    (make_tiles if kind == "exact" else draw_tiles)(folder / "tiles", tiles, size)
    found = in_a_process(kind, folder / "tiles", folder / "unused")
    print(f"{kind} copies among {tiles} tiles of {size}x{size} pixels, {usable_cores()} cores: ", end="")
    print(f"{found['seconds']:.0f} s, ", end="")
    print(f"{found['gigabytes']:.2f} GB of anonymous memory, each file read at most {found['most_reads']:.0f} times")


def main() -> None:
    """Measure, or run one task of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=224, help="side of a tile in pixels")
    parser.add_argument("--audit", choices=AUDITS, help="measure an audit instead, for such copies")
    parser.add_argument("--folder", type=Path, help="where to write the tiles (default: a temporary folder)")
    parser.add_argument("--task", choices=("read", "start", *AUDITS), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(measure(options.task, options.root, options.memory)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.audit:
            report_audit(options.audit, options.tiles, options.size, Path(folder))
        else:
            report(options.tiles, options.size, Path(folder))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
