"""Prediction of many files on one GPU, beside its parts, and the decoders of JPEGs, as tables of Markdown.

python docs/benchmarks/gpu_inputs.py              some minutes on an H200 with 16 cores
python docs/benchmarks/gpu_inputs.py --try        tiny, on any machine: does it run?
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from histo_pl.benchmark import alternate, table
from histo_pl.benchmark.limits import seconds_of
from histo_pl.benchmark.notebook import untrained_model
from histo_pl.benchmark.run import REPOSITORY, describe_machine, draw_tiles
from histo_pl.hardware import usable_cores
from histo_pl.images import read_tile
from histo_pl.inference import Predictor
from histo_pl.inference.files import find_images
from histo_pl.models.checkpoint import save_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATED = 20 if DEVICE == "cuda" else 2


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        predicted: Sizes of tiles and numbers of files that are predicted.
        side: Of the decoded tiles in pixels.
        decoded: Their number.
        rounds: Measurements of each decoder, in turns.
    """

    predicted: Sequence[tuple[int, int]] = ((512, 10_000), (224, 50_000))
    side: int = 512
    decoded: int = 1024
    rounds: int = 3


TRIAL = Scale(predicted=((32, 40),), side=32, decoded=40, rounds=1)


def prediction(scale: Scale) -> Iterator[str]:
    """Time predict.py on folders of many files, beside its parts."""
    for size, count in scale.predicted:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "tiles")
            draw_tiles(root, size, 16, 0)
            _link(root, count)
            save_model(untrained_model(size), Path(folder, "model.ckpt"))
            command = [sys.executable, str(REPOSITORY / "predict.py"), f"ckpt={folder}/model.ckpt", f"img={root}"]
            whole = seconds_of(partial(subprocess.run, command, check=True, capture_output=True))
            lines = [f"| prediction, {count} JPEGs of {size}x{size} | tiles a second |", "|---|---|"]
            lines.append(f"| predict.py, start included ({whole:.1f} s) | {count / whole:.0f} |")
            rates = _rates_of_prediction(find_images(str(root))[: max(40, count // 4)], size)
            yield "\n".join([*lines, *(f"| {name} | {rate:.0f} |" for name, rate in rates.items())])


def _link(root: Path, count: int) -> None:
    """Give the files of a folder further names, until there are `count`."""
    files = find_images(str(root))
    for number in range(len(files), count):
        os.link(files[number % len(files)], root / f"{number:06}.jpg")


def _rates_of_prediction(files: Sequence[Path], size: int) -> dict[str, float]:
    """Return the tiles a second of the predictor, of reading alone, and of the network alone."""
    predictor, rates = Predictor(untrained_model(size)), {}
    for batch in (32, 256):
        predictor.batch_size = batch
        seconds = seconds_of(lambda: list(predictor.predict(files)))
        rates[f"Predictor, batches of {batch}"] = len(files) / seconds
    with ThreadPoolExecutor(usable_cores()) as pool:
        rates["reading alone, one thread a core"] = len(files) / seconds_of(partial(_read_all, pool, files, size))
    tiles = torch.randint(0, 256, (32, 3, size, size), dtype=torch.uint8)
    for place, batch in {"host": tiles, "device": tiles.to(DEVICE)}.items():
        predictor.probabilities(batch)
        seconds = seconds_of(partial(predictor.probabilities, batch), REPEATED)
        rates[f"network alone, batches of 32 in the {place}'s memory"] = 32 / seconds
    return rates


def _read_all(pool: Executor, files: Sequence[Path], size: int) -> None:
    for _ in pool.map(partial(_read, size=size), files, chunksize=32):
        pass


def _read(file: Path, size: int) -> None:
    """Read a tile and keep nothing, so that a process need not send it."""
    read_tile(file, size)


def _decode(content: Tensor) -> Tensor:
    return decode_jpeg(content, ImageReadMode.RGB)


def decoding(scale: Scale) -> Iterator[str]:
    """Time the decoders of JPEGs, in turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        root = Path(folder, "tiles")
        draw_tiles(root, scale.side, scale.decoded, 0)
        files = find_images(str(root))
        contents = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
        threads: Executor = running.enter_context(ThreadPoolExecutor(usable_cores()))
        processes: Executor = running.enter_context(ProcessPoolExecutor(usable_cores(), get_context("spawn")))
        cores = usable_cores()
        works: dict[str, Callable[[], object]] = {
            f"Pillow (read_tile), {cores} threads": partial(_read_all, threads, files, scale.side),
            f"Pillow (read_tile), {cores} processes": partial(_read_all, processes, files, scale.side),
            f"torchvision, {cores} threads": lambda: _drain(threads.map(_decode, contents, chunksize=32)),
        }
        if DEVICE == "cuda":
            for batch in (32, 128, 512):
                works[f"nvJPEG, batches of {batch}"] = partial(_decode_on_device, contents, batch)
        measures = {name: partial(_milliseconds, work, len(files)) for name, work in works.items()}
        yield table(f"decoding, JPEG {scale.side}x{scale.side}", "ms a tile", alternate(measures, scale.rounds))
        if DEVICE == "cuda":
            reference = torch.stack([read_tile(file, scale.side) for file in files[:16]]).int()
            decoded = torch.stack(decode_jpeg(contents[:16], ImageReadMode.RGB, device="cuda")).cpu().int()
            difference = (decoded - reference).abs()
            mean = difference.float().mean()
            yield f"nvJPEG differs from Pillow by at most {difference.max()} of 255, on average by {mean:.3f}."


def _drain(results: Iterator[object]) -> None:
    for _ in results:
        pass


def _decode_on_device(contents: list[Tensor], batch: int) -> None:
    for start in range(0, len(contents), batch):
        decode_jpeg(contents[start : start + batch], ImageReadMode.RGB, device="cuda")


def _milliseconds(work: Callable[[], object], tiles: int) -> float:
    return 1000 * seconds_of(work) / tiles


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--try", dest="trial", action="store_true", help="tiny, to see that it runs")
    scale = TRIAL if parser.parse_args().trial else Scale()
    print(describe_machine(), flush=True)
    for part in (decoding, prediction):
        for text in part(scale):
            print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
