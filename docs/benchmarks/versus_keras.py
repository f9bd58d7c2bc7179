"""The notebook's job here and in Keras on TensorFlow, in turns, each in a process of its own.

python -m venv keras && keras/bin/pip install tensorflow scipy pillow
python docs/benchmarks/versus_keras.py --keras keras/bin/python --plot docs/images/benchmarks.png
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from histo_pl.benchmark.contest import Contender, alternate, table
from histo_pl.benchmark.run import contender, describe_machine, draw_tiles, figure

PEER = Path(__file__).with_name("keras_peer.py")
INPUTS = {"here, cache=none": "none", "here, cache=ram": "ram", "here, cache=disk": "disk"}


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
        draw_tiles(Path(folder, "tiles"), options.image_size, options.tiles)
        setting = {"root": f"{folder}/tiles", "cache_dir": f"{folder}/cache"}
        setting |= {"image_size": options.image_size, "batch_size": options.batch_size}
        results = measure(setting, options.keras, options.rounds)
    if options.plot:
        draw(results, options.plot)


def measure(setting: dict, keras: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run the three contests, print each one's table, and return milliseconds a tile by contest and contender."""
    results = {}
    with ExitStack() as running:
        peer = running.enter_context(Contender([keras, str(PEER), json.dumps(setting)]))
        versions = peer.ask("step", steps=1)["versions"]
        print(f"{describe_machine()}, {versions}", flush=True)

        def contest(title: str, measures: dict, turns: int) -> None:
            results[title] = alternate(
                {"Keras on TensorFlow": figure(peer, *task[title][0], **task[title][1])} | measures, turns
            )
            print("\n" + table(title, "ms a tile", results[title]), flush=True)

        task = {
            "training step": (["step"], {"steps": 2}),
            "input with the notebook's augmentation": (["input"], {"batches": 4}),
            "training epoch, input included": (["epoch"], {}),
        }
        single = running.enter_context(contender(setting, precision="32-true", cache="disk"))
        fast = running.enter_context(contender(setting, cache="disk"))
        contest(
            "training step",
            {"here, float32": figure(single, "step", steps=2), "here, fast_cpu": figure(fast, "step", steps=2)},
            rounds,
        )
        asked = {name: running.enter_context(contender(setting, cache=cache)) for name, cache in INPUTS.items()}
        contest(
            "input with the notebook's augmentation",
            {name: figure(one, "input", batches=4) for name, one in asked.items()},
            rounds,
        )
        contest("training epoch, input included", {"here, fast_cpu": figure(fast, "epoch")}, max(1, rounds - 2))
    return results


def draw(results: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draw each contender's time as a share of Keras's."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(12, 2.6), layout="constrained")
    for axis, (title, contenders) in zip(axes, results.items(), strict=True):
        base = statistics.median(next(iter(contenders.values())))
        shares = [statistics.median(values) / base for values in contenders.values()]
        bars = axis.barh(list(contenders), shares, color=["#8a8f98", *["#1f6f8b"] * (len(shares) - 1)])
        axis.bar_label(bars, [f"{share:.2f}" for share in shares], padding=3)
        axis.set(title=title, xlim=(0, 1.2), xlabel="time, Keras on TensorFlow = 1")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
