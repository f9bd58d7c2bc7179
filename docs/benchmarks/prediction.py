"""Measure the tiles a second of a folder's prediction beside a bare loop, a plain DataLoader script and onnxruntime.

python docs/benchmarks/prediction.py TILES RUN ... [--count 2000] [--rounds 5]

TILES is a folder of tiles, RUN a training's folder. The contenders are processes of their own that answer for links to
the same files, in turns: the network alone over tiles in memory, `Predictor.predict`, that with the model exported to
ONNX, and a script as one writes it, with PyTorch's DataLoader and two workers. A last line tells the gain of bfloat16,
and what it changes. Needs pip install -e '.[onnx]'.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from engines import link_tiles
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from histo_pl import Predictor, load_model
from histo_pl.benchmark.run import describe_machine
from histo_pl.benchmark.workers import BenchmarkWorker, alternate, table
from histo_pl.cli.command_line import prepare_process
from histo_pl.hardware import keep_freed_memory, usable_cores
from histo_pl.images import find_files, read_tile
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.probability import to_probability

BATCH = 32
BARE, FOLDER, ONNX, PLAIN = "network alone", "Predictor", "Predictor, onnxruntime", "a plain DataLoader script"


def main() -> None:
    """Print a table a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--count", type=int, default=2000, help="tiles to answer (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    options = parser.parse_args()
    prepare_process()  # workers inherit what the programs have
    keep_freed_memory()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_tiles(options.tiles, folder / "tiles", options.count)
        for number, run in enumerate(options.runs):
            print(f"\n{compare(run, folder, f'export{number}', options.rounds)}", flush=True)
            print(f"\n{describe_bfloat16(run, list(find_files(options.tiles)))}", flush=True)


def compare(run: Path, folder: Path, export: str, rounds: int) -> str:
    """Hold the contest for one run."""
    command = [sys.executable, "-m", "histo_pl", "export", str(run), str(folder / export), "--to", "onnx"]
    subprocess.run(command, check=True, capture_output=True)
    models = {BARE: run, FOLDER: run, ONNX: folder / export / "model.onnx", PLAIN: run}
    with ExitStack() as running:
        measures = {}
        for name, model in models.items():
            setting = json.dumps({"name": name, "model": str(model), "tiles": str(folder / "tiles")})
            worker = running.enter_context(BenchmarkWorker([sys.executable, __file__, "--serve", setting]))
            measures[name] = lambda worker=worker: worker.ask("answer")["milliseconds"]
        found = alternate(measures, rounds)
    rates = ", ".join(f"{name} {1000 / statistics.median(values):.0f}" for name, values in found.items())
    return f"{table(run.name, 'ms a tile', found)}\n\nTiles a second: {rates}."


def describe_bfloat16(run: Path, files: list[Path]) -> str:
    """Compare the network's answers in bfloat16 with those in float32: their time and their probabilities."""
    model = load_model(run)
    batches = read_batches(model, files)
    seconds, found = [], []
    for mixed in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            model.network(batches[0])
            started = time.perf_counter()
            logits = torch.cat([model.network(batch) for batch in batches])
        seconds.append(time.perf_counter() - started)
        found.append(to_probability(logits, model.temperature))
    difference = (found[1] - found[0]).abs()
    return (
        f"In bfloat16 the network takes {seconds[1] / seconds[0]:.2f} of its time, and the probabilities of "
        f"{len(files)} tiles differ by {difference.mean():.1e}, at most {difference.max():.1e}."
    )


def read_batches(model: TrainedModel, files: list[Path]) -> list[torch.Tensor]:
    """Read tiles as a model sees them, uint8 of shape (B, 3, S, S)."""
    tiles = [read_tile(file, model.image_size, model.resize) for file in files]
    return [torch.stack(tiles[start : start + BATCH]) for start in range(0, len(tiles), BATCH)]


def serve(setting: str) -> None:
    """Answer for all tiles, again for each line that comes in."""
    answers, sys.stdout = sys.stdout, sys.stderr
    keep_freed_memory()
    asked = json.loads(setting)
    answer = {BARE: bare, FOLDER: of_files, ONNX: of_files, PLAIN: plain}[asked["name"]]
    files = list(find_files(asked["tiles"]))
    work = answer(asked["model"], files)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        print(json.dumps({"milliseconds": 1000 * seconds / len(files)}), file=answers, flush=True)


def bare(path: str, files: list[Path]) -> Callable[[], object]:
    """Ask the network alone."""
    model = load_model(path)
    predictor, batches = Predictor(model), read_batches(model, files)
    return lambda: [predictor.probabilities(batch) for batch in batches]


def of_files(path: str, files: list[Path]) -> Callable[[], object]:
    """Ask as predict.py does, novelty and notes included."""
    predictor = Predictor(load_model(path), batch_size=BATCH)
    return lambda: list(predictor.predict(files))


def plain(path: str, files: list[Path]) -> Callable[[], object]:
    """Ask as a script does that one writes for the purpose."""
    model = load_model(path)

    def work() -> list[float]:
        loader = DataLoader(PlainTiles(files, model.image_size), BATCH, num_workers=usable_cores())
        with torch.inference_mode():
            return [value for batch in loader for value in model.network(batch).sigmoid().tolist()]

    return work


class PlainTiles(Dataset[torch.Tensor]):
    """Tiles by Pillow and torchvision."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Read a tile, uint8 of shape (3, S, S)."""
        return self.transform(Image.open(self.files[index]).convert("RGB"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
