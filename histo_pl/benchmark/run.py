"""Benchmark of input, training, prediction and start, as tables of Markdown."""

import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from histo_pl.benchmark.limits import least_step
from histo_pl.benchmark.notebook import untrained_model
from histo_pl.benchmark.workers import BenchmarkWorker, alternate, ratio, table
from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.hardware import fast_precision, processor_class, usable_cores
from histo_pl.models.checkpoint import save_model

REPOSITORY = Path(__file__).parents[2]
DRAWN = 16  # different tiles; the others are copies of them
CLASSES = ("benign", "malignant")
QUALITY = 90  # of the JPEGs
SMALL = 224  # pixels, of the image whose prediction is timed from the start of Python
SINGLE, FAST = "freed memory kept", "as experiment=fast_*"  # settings of a step
SINGLE_PRECISION = "32-true"  # Lightning's name
IMPORTS = "torch, torchvision, lightning, hydra, torchmetrics"
PEAKS = {"VmHWM": "of the process", "device": "on the GPU"}
PREDICTIONS = {"bare loop over tiles in memory": "bare", "folder of files": "folder"}


def benchmark(image_size: int = 512, batch_size: int = 8, tiles: int = 200, rounds: int = 5) -> Iterator[str]:
    """Measure input, training, prediction and start on this machine, on drawn tiles in a folder that is removed again.

    Args:
        image_size: Side of tiles and network in pixels.
        batch_size: Tiles a batch.
        tiles: Number of them, at least 20.
        rounds: Number of measurements of each, in turns.

    Yields:
        The machine, and then a table at a time, in Markdown.

    Raises:
        UserError: A number is too small, or a process ended.
    """
    if min(image_size - 21, batch_size, tiles - 19, rounds) < 1:
        raise UserError(
            f"The benchmark is too small. Expected an image size of at least 22, 20 tiles, a batch and a round. "
            f"Received: {image_size=} {batch_size=} {tiles=} {rounds=}"
        )
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(folder, image_size, batch_size, tiles)
        batches = max(1, min(tiles // 2, 64) // batch_size)
        yield describe_machine()
        yield _input(setting, batches, rounds)
        yield _step(setting, rounds)
        yield _epoch(setting, rounds)
        yield _prediction(setting, rounds)
        yield _start(Path(folder), rounds)


def prepare(folder: str, image_size: int, batch_size: int, tiles: int, tests: int = 16) -> dict[str, Any]:
    """Draw tiles, see `draw_tiles`, and return the arguments of `tasks.Tasks` for them.

    Args:
        folder: The folder of tiles and cache.
        image_size: Side of tiles and network in pixels.
        batch_size: Tiles a batch.
        tiles: Number of those to train on and to validate on.
        tests: Number of those to test on.
    """
    draw_tiles(Path(folder, "tiles"), image_size, tiles, tests)
    return {
        "root": f"{folder}/tiles",
        "cache_dir": f"{folder}/cache",
        "image_size": image_size,
        "batch_size": batch_size,
    }


def draw_tiles(root: Path, size: int, tiles: int, tests: int) -> None:
    """Draw JPEGs as `root/train/<class>` and `root/test/<class>`; they are synthetic.

    Args:
        root: The folder to make.
        size: Side of a tile in pixels.
        tiles: Number of those in train.
        tests: Number of those in test.
    """
    drawn = [_jpeg(number, size) for number in range(DRAWN)]
    for part, count in (("train", tiles), ("test", tests)):
        for number in range(count):
            folder = root / part / CLASSES[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05}.jpg").write_bytes(drawn[number % DRAWN])


def describe_machine() -> str:
    """Name what the figures hold for: the day, the processor or GPU, and PyTorch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    processor = f"{usable_cores()} cores of {name} ({processor_class()})"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{time.strftime('%Y-%m-%d')}, {processor}{gpu}, PyTorch {torch.__version__}"


def start_worker(setting: dict[str, Any], **changes: Any) -> BenchmarkWorker:  # noqa: ANN401
    """Start a process that does `tasks.Tasks`.

    Args:
        setting: Arguments of `Tasks`.
        **changes: Others of them.
    """
    return BenchmarkWorker([sys.executable, "-m", "histo_pl.benchmark.tasks", json.dumps(setting | changes)])


def figure(asked: BenchmarkWorker, task: str, **options: Any) -> Callable[[], float]:  # noqa: ANN401
    """Make a function that asks a worker for the milliseconds that a tile takes.

    Args:
        asked: The worker.
        task: The task.
        **options: Of the task.
    """
    return lambda: 1000 * asked.ask(task, **options)["seconds"]


def _input(setting: dict[str, Any], batches: int, rounds: int) -> str:
    caches = ("none", "ram", "disk", *(["device"] if torch.cuda.is_available() else []))
    with ExitStack() as running:
        asked = {cache: running.enter_context(start_worker(setting, cache=cache)) for cache in caches}
        measures = {f"cache={cache}": figure(one, "input", batches=batches) for cache, one in asked.items()}
        return table("input, augment=keras, one process", "ms a tile", alternate(measures, rounds))


def _step(setting: dict[str, Any], rounds: int) -> str:
    with ExitStack() as running:
        plain = running.enter_context(start_worker(setting, fast=False))
        single = running.enter_context(start_worker(setting, precision=SINGLE_PRECISION))
        fast = running.enter_context(start_worker(setting))
        measures = {
            "freed memory returned": figure(plain, "step", steps=2),
            SINGLE: figure(single, "step", steps=2),
            FAST: figure(fast, "step", steps=2),
        }
        found = alternate(measures, rounds)
        lines = (
            table("training step", "ms a tile", found),
            _faster(found),
            _share_of_limits(fast, setting["batch_size"]),
        )
        return "\n\n".join(lines)


def _faster(found: Mapping[str, Sequence[float]]) -> str:
    """Tell which arithmetic is faster here, and which trainer=amp takes."""
    precision = fast_precision()
    if precision == SINGLE_PRECISION:
        return f"trainer=amp takes {precision} here."
    faster = precision if ratio(found[FAST], found[SINGLE]) < 1 else SINGLE_PRECISION
    return f"Faster here: {faster}. trainer=amp takes {precision}."


def _share_of_limits(fast: BenchmarkWorker, batch_size: int) -> str:
    step = fast.ask("step", steps=4)
    peaks = [f"{step[name]:.1f} GB {where}" for name, where in PEAKS.items() if name in step]
    work = fast.ask("limits")
    least, seconds = least_step(work), batch_size * step["seconds"]
    return (
        f"A step takes {work['step_flops'] / 1e9:.0f} billion operations and {work['step_bytes'] / 1e9:.2f} GB; this "
        f"device does {work['flops'] / 1e9:.0f} billion a second and moves {work['bandwidth'] / 1e9:.0f} GB a second. "
        f"So a step takes {1000 * least:.1f} ms at least, which is "
        f"{least / seconds:.0%} of the {1000 * seconds:.1f} ms of the fast one. "
        f"Peak memory: {' and '.join(peaks) or 'not known here'}."
    )


def _epoch(setting: dict[str, Any], rounds: int) -> str:
    caches = ("none", "device" if torch.cuda.is_available() else "disk")
    with ExitStack() as running:
        asked = {cache: running.enter_context(start_worker(setting, cache=cache)) for cache in caches}
        measures = {f"cache={cache}": figure(one, "epoch") for cache, one in asked.items()}
        return table("training epoch", "ms a tile", alternate(measures, min(rounds, 3)))


def _prediction(setting: dict[str, Any], rounds: int) -> str:
    with start_worker(setting) as asked:
        shares = [asked.ask("predict") for _ in range(rounds + 1)][1:]
    results = {name: [1000 * share[key] for share in shares] for name, key in PREDICTIONS.items()}
    return table("prediction", "ms a tile", results)


def _start(folder: Path, rounds: int) -> str:
    if not (REPOSITORY / "predict.py").exists():
        return f"Start: not measured, as there is no predict.py in {REPOSITORY}."
    save_model(untrained_model(SMALL), folder / "model.ckpt")
    (folder / "tile.jpg").write_bytes(_jpeg(0, SMALL))
    predictions = {
        'python -c "import torch"': _seconds(folder, "-c", "import torch"),
        "predict.py, one image": _seconds(folder, str(REPOSITORY / "predict.py"), "ckpt=model.ckpt", "img=tile.jpg"),
    }
    trainings = {
        f'python -c "import {IMPORTS}"': _seconds(folder, "-c", f"import {IMPORTS}"),
        "train.py debug=fast": _seconds(folder, str(REPOSITORY / "train.py"), "debug=fast"),
    }
    return "\n\n".join(
        table(title, "seconds", alternate(measures, rounds))
        for title, measures in {f"start, KerasCNN at {SMALL} pixels": predictions, "a short run": trainings}.items()
    )


def _seconds(folder: Path, *arguments: str) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - started

    return run


def _jpeg(number: int, size: int) -> bytes:
    rng = np.random.default_rng(number)
    pixels = draw_tile(rng, Stain.draw(rng), malignant=number % 2 == 1, size=size)
    stream = io.BytesIO()
    Image.fromarray(pixels[:size, :size]).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
