"""Anonymous memory of a process under cache=disk, after a pass over the loader and 20 training steps.

python docs/benchmarks/memory.py --tiles 1000 10000
"""

import argparse
import tempfile

from histo_pl.benchmark.run import describe_machine, prepare, start_worker

STEPS = 20


def main() -> None:
    """Measure each number of tiles, and print the ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1000, 10000], help="numbers to compare")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    print(describe_machine())
    first = None
    for tiles in options.tiles:
        found = anonymous(tiles, options.image_size, options.batch_size)
        first = first or found
        print(f"{tiles} tiles: RssAnon {found:.3f} GB, ratio {found / first:.3f}", flush=True)


def anonymous(tiles: int, image_size: int, batch_size: int) -> float:
    """Return the gigabytes for so many tiles."""
    with (
        tempfile.TemporaryDirectory() as folder,
        start_worker(prepare(folder, image_size, batch_size, tiles), cache="disk") as asked,
    ):
        asked.ask("input", batches=-(-tiles * 4 // 5 // batch_size))
        return asked.ask("step", steps=STEPS)["RssAnon"]


if __name__ == "__main__":
    main()
