"""Tasks of a benchmark worker: `python -m histo_pl.benchmark.tasks SETTING` answers until its input ends."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from histo_pl.benchmark.limits import limits, wait_for_device, work_of
from histo_pl.benchmark.notebook import notebook_model_config, untrained_model
from histo_pl.data import HistologyDataModule
from histo_pl.data.transforms.keras_affine import KerasRandomAffine
from histo_pl.hardware import fast_precision, keep_freed_memory
from histo_pl.images import RESIZE, read_tile
from histo_pl.inference import Predictor
from histo_pl.inference.files import find_images
from histo_pl.training.module import TileClassifier
from histo_pl.training.optimizers import adam

NOTEBOOK = {"rotation_range": 20, "shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True}


class Tasks:
    """The notebook's job in parts, each timed by the tile; what takes long to set up is kept for the next time.

    Args:
        root: A folder of tiles.
        cache_dir: The folder of `cache=disk`.
        image_size: Side of the network's input in pixels.
        batch_size: Tiles a batch.
        cache: See `HistologyDataModule`.
        fast: Use the settings of `experiment=fast_cpu` and `fast_gpu`; otherwise it is float32, and freed memory is
            returned.
        precision: Lightning's name; None: what is fast here.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        image_size: int,
        batch_size: int,
        cache: str = "none",
        fast: bool = True,
        precision: str | None = None,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.image_size, self.batch_size, self.fast = image_size, batch_size, fast
        self.precision: Any = (precision or fast_precision()) if fast else "32-true"
        if fast:
            keep_freed_memory()
        if fast and self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        self.data = HistologyDataModule(
            root,
            image_size=image_size,
            batch_size=batch_size,
            augment=KerasRandomAffine(**NOTEBOOK),
            cache=cache,
            cache_dir=cache_dir,
        )

    def input(self, batches: int) -> dict[str, float]:
        """Read and augment batches in this process alone; return seconds a tile."""
        return self._timed(lambda: _repeat(batches, lambda: next(self._batches)), batches)

    def step(self, steps: int) -> dict[str, Any]:
        """Train on one batch over and over; return seconds a tile."""
        return self._timed(lambda: _repeat(steps, self._step), steps)

    def epoch(self) -> dict[str, float]:
        """Train an epoch as train.py does, without validation; return seconds a tile."""
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            precision=self.precision,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        self.data.setup()
        tiles = len(self.data.tiles_of("train"))
        return self._timed(lambda: trainer.fit(self._classifier, self.data), tiles / self.batch_size)

    def predict(self) -> dict[str, float]:
        """Predict from files, and in a bare loop over tiles that were read before; return seconds a tile."""
        predictor, files = self._predictor, find_images(str(self.data.root))
        bare = self._timed(lambda: [predictor.probabilities(b) for b in self._read], len(files) / self.batch_size)
        folder = self._timed(lambda: list(predictor.predict(files)), len(files) / self.batch_size)
        return {"bare": bare["seconds"], "folder": folder["seconds"], "share": bare["seconds"] / folder["seconds"]}

    def limits(self) -> dict[str, float]:
        """Measure what the device does at most, and count what a step takes of it."""
        mixed = self.precision != "32-true"
        return limits(self.device, mixed=mixed) | work_of(
            notebook_model_config(self.image_size), self.batch_size, mixed=mixed
        )

    def _timed(self, work: Callable[[], object], batches: float) -> dict[str, float]:
        wait_for_device()
        started = time.perf_counter()
        work()
        wait_for_device()
        return {"seconds": (time.perf_counter() - started) / batches / self.batch_size}

    @cached_property
    def _batches(self) -> Iterator[dict[str, Any]]:
        self.data.num_workers = 0
        self.data.setup()
        return self._draw()

    def _draw(self) -> Iterator[dict[str, Any]]:
        loader, epoch = self.data.train_dataloader(), 0
        while True:
            loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
            for batch in loader:
                ready = self.data.on_before_batch_transfer(batch, 0)
                yield self.data.on_after_batch_transfer(move_data_to_device(ready, self.device), 0)
            epoch += 1

    @cached_property
    def _classifier(self) -> TileClassifier:
        torch.manual_seed(0)
        classifier = TileClassifier(
            network=notebook_model_config(self.image_size),
            image_size=self.image_size,
            classes=["benign", "malignant"],
            data={},
            resize=RESIZE,
            optimizer=adam,
        )
        if self.fast:
            classifier.network.to(memory_format=torch.channels_last)
        return classifier

    @cached_property
    def _step(self) -> Callable[[], None]:
        network = self._classifier.network.to(self.device)
        optimizer, loss = adam(network), nn.BCEWithLogitsLoss()
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        labels = torch.randint(0, 2, shape[:1], device=self.device).float()
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

        def step() -> None:
            with torch.autocast(self.device, mixed, enabled=mixed is not None):
                logits = network(images)
            loss(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(untrained_model(self.image_size), batch_size=self.batch_size)

    @cached_property
    def _read(self) -> list[Tensor]:
        tiles = [read_tile(file, self.image_size) for file in find_images(str(self.data.root))]
        return [torch.stack(tiles[at : at + self.batch_size]) for at in range(0, len(tiles), self.batch_size)]


def _repeat(times: int, work: Callable[[], object]) -> None:
    """Do it again and keep nothing: kept batches would count as the loader's memory."""
    for _ in range(times):
        work()


def memory() -> dict[str, float]:
    """Read this process's memory in GB: `VmHWM`, at most, and `RssAnon` on Linux; `device`, at most, on a GPU."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    device = {"device": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}
    return {name: int(kilobytes) * 1024 / 1e9 for name, kilobytes in values.items()} | device


def serve(setting: str) -> None:
    """Answer tasks, one a line; what a library prints goes elsewhere.

    Args:
        setting: The arguments of `Tasks`, as JSON.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    tasks = Tasks(**json.loads(setting))
    for line in sys.stdin:
        request = json.loads(line)
        figures = getattr(tasks, request.pop("task"))(**request)
        print(json.dumps(figures | memory()), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
