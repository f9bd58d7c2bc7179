"""Do exports answer as their checkpoint, and how fast is each?

python docs/benchmarks/exports.py TILES CKPT ...             # some minutes a checkpoint on 2 cores

TILES is a folder of tiles, CKPT a checkpoint or a run's folder. Each is exported as ONNX, as a program of torch.export
and as QuPath's TorchScript; 64 tiles spread over the folder are asked about in batches of 1, 7 and 64, with thresholds
of .5 and .25.
Times are of the graphs alone, bytes in memory, in turns; medians of the rounds. Needs pip install -e '.[onnx]'.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histo_pl import Predictor, load_model, save_model
from histo_pl.hardware import keep_freed_memory
from histo_pl.interop.export import export
from histo_pl.interop.parity import read_tiles
from histo_pl.models.checkpoint import TrainedModel

BATCHES = (1, 7, 64)
THRESHOLDS = (0.5, 0.25)
TIMED = (1, 32)


def main() -> None:
    """Print two tables for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each time (default: 15)")
    options = parser.parse_args()
    keep_freed_memory()  # as predict.py does
    for checkpoint in options.checkpoints:
        model = load_model(checkpoint)
        square = replace(model, data=model.data | {"mpp": 0.5, "tile_size": (224, 224)})  # QuPath wants a scale
        images = read_tiles(options.tiles, model).images
        with tempfile.TemporaryDirectory() as folder:
            for threshold in THRESHOLDS:
                print_parity(replace(square, threshold=threshold), images, Path(folder), checkpoint)
            print_times(square, images, Path(folder), checkpoint, options.rounds)


def export_all(model: TrainedModel, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Export a model, and return functions from bytes to probabilities, that of QuPath's moved threshold undone."""
    file = folder / f"{model.threshold}.ckpt"
    save_model(model, file)
    asks: dict[str, Callable[[Tensor], Tensor]] = {}
    for to, name in (("onnx", "model.onnx"), ("torch", "model.pt2"), ("qupath", "torchscript_model.pt")):
        out = folder / f"{to}_{model.threshold}"
        if not out.exists():
            export(file, out, to)
        if to == "qupath":
            asks["TorchScript"] = partial(ask_two_logits, torch.jit.load(out / name), model.threshold)
        else:
            asks[".pt2" if to == "torch" else "onnxruntime"] = Predictor(load_model(out / name), "cpu").probabilities
    return asks


def ask_two_logits(graph: Any, threshold: float, images: Tensor) -> Tensor:  # noqa: ANN401
    """Return the probabilities of QuPath's graph, its threshold moved back."""
    return torch.sigmoid(graph(images.float() / 255)[:, 1] + torch.logit(torch.tensor(threshold)))


@torch.inference_mode()
def print_parity(model: TrainedModel, images: Tensor, folder: Path, name: str) -> None:
    """Print the largest difference of a probability and the labels that differ, for each batch."""
    wanted = Predictor(model, "cpu").probabilities(images)
    for kind, ask in export_all(model, folder).items():
        cells = []
        for batch in BATCHES:
            found = torch.cat([ask(part) for part in images.split(batch)])
            differ = int(((found > model.threshold) != (wanted > model.threshold)).sum())
            cells.append(f"{float((found - wanted).abs().max()):.1e}, {differ} labels")
        print(f"{name}, threshold {model.threshold}, {kind}: batches of 1, 7, 64: {'; '.join(cells)}", flush=True)


@torch.inference_mode()
def print_times(model: TrainedModel, images: Tensor, folder: Path, name: str, rounds: int) -> None:
    """Print milliseconds a tile for each batch, in turns, and their ratio to the checkpoint's."""
    asks = {"checkpoint": Predictor(model, "cpu").probabilities, **export_all(model, folder)}
    for batch in TIMED:
        times = time_in_turns(asks, images[:batch].contiguous(), rounds)
        own = statistics.median(times["checkpoint"])
        for kind, seconds in times.items():
            median = statistics.median(seconds)
            print(
                f"{name}, batch {batch}, {kind}: {1000 * median / batch:.2f} ms a tile "
                f"({1000 * min(seconds) / batch:.2f} to {1000 * max(seconds) / batch:.2f}), {median / own:.2f} of the "
                f"checkpoint's",
                flush=True,
            )


def time_in_turns(
    asks: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each function for one batch, after two rounds to warm up."""
    times: dict[str, list[float]] = {kind: [] for kind in asks}
    for number in range(rounds + 2):
        for kind, ask in asks.items():
            start = time.perf_counter()
            ask(images)
            if number > 1:
                times[kind].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
