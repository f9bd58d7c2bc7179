"""The notebook's job here and in Keras on TensorFlow, in turns, each in a process of its own.

python -m venv keras && keras/bin/pip install tensorflow scipy pillow
python docs/benchmarks/versus_keras.py --keras keras/bin/python --plot docs/images/benchmarks.png
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from histo_pl.benchmark.run import describe_machine, figure, prepare, start_worker
from histo_pl.benchmark.workers import BenchmarkWorker, alternate, ratio, table

PEER = Path(__file__).with_name("keras_peer.py")
KERAS = "Keras on TensorFlow"
STEP, INPUT, EPOCH = "training step", "input with the notebook's augmentation", "training epoch, input included"

Setting = dict[str, str | int]
Figures = dict[str, list[float]]


def main() -> None:
    """Measure, print the tables, and draw them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras", required=True, metavar="PYTHON", help="a Python with tensorflow, scipy and pillow")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=500, help="of which four fifths train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(folder, options.image_size, options.batch_size, options.tiles)
        results = measure(setting, options.keras, options.rounds)
    if options.plot:
        draw(results, options.plot)


def measure(setting: Setting, keras: str, rounds: int) -> dict[str, Figures]:
    """Hold the three contests, print each one's table, and return milliseconds a tile by contest and worker."""
    with ExitStack() as running:
        start = running.enter_context
        peer = start(BenchmarkWorker([keras, str(PEER), json.dumps(setting)]))
        single = start(start_worker(setting, precision="32-true"))
        ours = {cache: start(start_worker(setting, cache=cache)) for cache in ("none", "ram", "disk")}
        print(f"{describe_machine()}, {peer.ask('step', steps=1)['versions']}", flush=True)
        step = {"here, float32": single, "here, fast_cpu": ours["disk"]}
        caches = {f"here, cache={cache}": one for cache, one in ours.items()}
        fast = {"here, fast_cpu": ours["disk"]}
        return {
            STEP: contest(STEP, rounds, {KERAS: peer} | step, "step", steps=2),
            INPUT: contest(INPUT, rounds, {KERAS: peer} | caches, "input", batches=4),
            EPOCH: contest(EPOCH, max(1, rounds - 2), {KERAS: peer} | fast, "epoch"),
        }


def contest(title: str, rounds: int, workers: dict[str, BenchmarkWorker], task: str, **options: int) -> Figures:
    """Have all workers do a task in turns, and print the table."""
    found = alternate({name: figure(one, task, **options) for name, one in workers.items()}, rounds)
    print(f"\n{table(title, 'ms a tile', found)}", flush=True)
    return found


def draw(results: dict[str, Figures], file: Path) -> None:
    """Draw each worker's time as a share of Keras's."""
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(1, len(results), figsize=(13, 2.6), layout="constrained")
    for axis, (title, workers) in zip(axes, results.items(), strict=True):
        base = next(iter(workers.values()))
        shares = [ratio(values, base) for values in workers.values()]
        bars = axis.barh(list(workers), shares, color=["#8a8f98", *["#1f6f8b"] * (len(shares) - 1)])
        axis.bar_label(bars, [f"{share:.2f}" for share in shares], padding=3)
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(0, 1.2), xlabel="time, Keras on TensorFlow = 1")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    drawing.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
