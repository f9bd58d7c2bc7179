"""A trained model's opinion on image files."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from histo_pl.appearance import LEAST_TISSUE, is_grey, sample_pixels, tissue_share
from histo_pl.errors import ImageError, UserError
from histo_pl.hardware import full_precision, release_freed_memory, usable_cores
from histo_pl.images import read_tile
from histo_pl.inference.files import find_images
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.ensemble import FoldEnsemble, join_folds
from histo_pl.models.evidence import Evidence, explain, method_for
from histo_pl.models.exported import ExportedNetwork
from histo_pl.models.novelty import answer
from histo_pl.models.views import dihedral_views
from histo_pl.probability import label_of, to_probability

Item = TypeVar("Item")
BATCH_SIZE = 32  # files: of 16 a folder takes 2 to 5% longer on a processor (docs/benchmarks.md)
READ_AHEAD = 2  # batches that are read while the network looks at another
RELEASE_EVERY = 32  # batches: what many allocations leave between them would grow with their number


@dataclass(frozen=True)
class Prediction:
    """The answer for one file.

    Attributes:
        file: The file, as it was named.
        probability: Of malignancy, in [0, 1]; None if there is no answer.
        label: Malignant, Benign, `Unlike training: refer` of a novelty above 1, or `Uncertain: refer` within the
            checkpoint's band; None if there is no answer.
        error: The reason why there is no answer; None if all went well.
        spread: Standard deviation of the folds' probabilities, in [0, 0.5]; None of a single model.
        novelty: Distance from the training tiles in units of its limit; None where the checkpoint cannot tell.
        note: A reason to doubt the answer: hardly any tissue, or no colour; None if there is none.
        trained_on: The name of the data that trained the model.
    """

    file: str
    probability: float | None
    label: str | None
    error: str | None
    trained_on: str
    spread: float | None = None
    novelty: float | None = None
    note: str | None = None

    def row(self) -> dict[str, str | float | None]:
        """Return the attributes as a row of a table; the probability is in [0, 1]."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """A model's answers about a batch of tiles, on the CPU.

    Attributes:
        folds: Logits of each fold, or of the one network, of shape (K, B); float64 and calibrated of several folds.
        novelty: Of shape (B,); None where the model cannot tell.
    """

    folds: Tensor
    novelty: Tensor | None

    @property
    def logits(self) -> Tensor:
        """One logit of each tile, float32 of shape (B,), which the temperature has not divided."""
        return (self.folds[0] if len(self.folds) == 1 else join_folds(self.folds)).float()

    @property
    def spread(self) -> Tensor | None:
        """Standard deviation of the folds' probabilities, of shape (B,); None of a single network."""
        return None if len(self.folds) == 1 else to_probability(self.folds).std(0, correction=0)


class Predictor:
    """Asks a trained model about image files.

    Args:
        model: A loaded model.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one.
        batch_size: Files a batch; None: `BATCH_SIZE`.
        tta: Answer by the mean logit of a tile's eight views, turned by quarters and mirrored, which takes
            eight times as long (test-time augmentation), and by the temperature, threshold and band that were chosen
            for it; those of single views, if none were (`TrainedModel.decision_tta`).

    Raises:
        UserError: There is no such device, or the batch size is below 1.
    """

    def __init__(
        self, model: TrainedModel, device: str = "auto", batch_size: int | None = None, tta: bool = False
    ) -> None:
        if not isinstance(model, TrainedModel):
            raise UserError(f"Expected a model that load_model returned. Received: {type(model).__name__}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise UserError(f"batch_size is out of range. Expected a whole number, at least 1. Received: {batch_size}")
        is_exported = isinstance(model.network, ExportedNetwork)
        if is_exported and device not in ("auto", "cpu"):
            raise UserError(f"An exported model answers on the processor. Expected auto or cpu. Received: {device}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() and not is_exported else "cpu"
        try:
            self.network = model.network.to(device)
            self.novelty = model.novelty and model.novelty.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"This device cannot be used. Expected auto or cpu. Received: {device}") from error
        self.model = model.of_views() if tta else model
        self.device = device
        self.batch_size = batch_size or BATCH_SIZE
        self.tta = tta

    @property
    def tells_novelty(self) -> bool:
        """True if the model can tell a tile unlike those of its training."""
        return self.model.tells_novelty

    @torch.inference_mode()
    def answers(self, images: Tensor) -> Answers:
        """Compute logits and novelty; with `tta` the novelty is that of the tiles as they are.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size.

        Raises:
            UserError: The images are of another type or shape.
        """
        self._check(images)
        images = images.to(self.device)
        with full_precision():
            folds, novelty = self._ask(images)
            if self.tta:
                turned = [self._ask(view)[0] for view in dihedral_views(images)[1:]]
                folds = torch.stack((folds, *turned)).mean(0)
        return Answers(folds.cpu(), None if novelty is None else novelty.cpu())

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits, which the temperature has not divided.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size.

        Returns:
            float32 of shape (B,), on the CPU.

        Raises:
            UserError: The images are of another type or shape.
        """
        return self.answers(images).logits

    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of each fold's network, or of the one network, (K, B), and the novelty, (B,) or None."""
        if isinstance(self.network, FoldEnsemble | ExportedNetwork):
            return self.network.answers_of_folds(images)
        logits, novelty = answer(self.network, self.novelty, images)
        return logits[None], novelty

    def probabilities(self, images: Tensor) -> Tensor:
        """Compute probabilities of malignancy.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size.

        Returns:
            float32 of shape (B,) in [0, 1], on the CPU.

        Raises:
            UserError: The images are of another type or shape.
        """
        return to_probability(self.logits(images), self.model.temperature)

    def explain(self, images: Tensor, method: str | bool = True) -> Evidence:
        """Compute evidence maps: the contribution of each place to the logit.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size.
            method: One of `evidence.METHODS`; True: the most faithful that the network allows.

        Returns:
            The maps, of the tiles as they are, whatever `tta`.

        Raises:
            UserError: The images or the method are not as expected, or captum is needed and not installed.
        """
        self._check(images)
        chosen = method_for(self.network, method)
        if chosen is None:
            raise UserError("There is no map by no method. Expected one, or True. Received: False")
        with full_precision():
            return explain(self.network, images.to(self.device), chosen)

    def _check(self, images: Tensor) -> None:
        size = self.model.image_size
        is_tensor = isinstance(images, Tensor)
        if not is_tensor or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):  # noqa: PLR2004
            shape = tuple(getattr(images, "shape", ()))
            raise UserError(
                f"The images are not as expected. Expected a tensor of torch.uint8 (RGB, 0 to 255) of shape "
                f"(B, 3, {size}, {size}). Received: {type(images).__name__} of {getattr(images, 'dtype', 'no type')}, "
                f"shape {shape}"
            )

    def predict(self, files: Sequence[str | Path] | str | Path) -> Iterator[Prediction]:
        """Answer for each file, in order; one that cannot be read gets its error as its answer.

        Args:
            files: Image files; or one file, folder or pattern, see `find_images`.

        Yields:
            One prediction a file.
        """
        files = find_images(str(files)) if isinstance(files, str | Path) else [Path(file) for file in files]
        for batch in self.stream(files, lambda file: read_tile(file, self.model.image_size, self.model.resize)):
            yield from batch

    def stream(self, items: Iterable[Item], read: Callable[[Item], Tensor]) -> Iterator[list[Prediction]]:
        """Answer for a stream of pictures, which threads read ahead while the network looks at others.

        Args:
            items: Names of pictures, such as files or the places of a slide's tiles; taken as they are needed.
            read: Reads one, uint8 of shape (3, S, S), at the model's image size; called by several threads.

        Yields:
            The predictions of each batch, in order; one that raised an `ImageError` gets it as its answer.
        """

        def attempt(item: Item, place: Tensor) -> ImageError | None:
            try:
                place.numpy()[:] = read(item).numpy()  # PyTorch's copy would have threads of its own in each reader
            except ImageError as error:
                return error
            return None

        rest, batches = iter(items), count(1)
        reading: deque[tuple[list[Item], Tensor, list[Future[ImageError | None]]]] = deque()
        with ThreadPoolExecutor(usable_cores()) as pool:
            while batch := list(islice(rest, self.batch_size)):
                # Made and freed by this thread: what the readers made for it would grow their heaps batch by batch.
                images = torch.empty(len(batch), 3, self.model.image_size, self.model.image_size, dtype=torch.uint8)
                futures = [pool.submit(attempt, item, place) for item, place in zip(batch, images, strict=True)]
                reading.append((batch, images, futures))
                if len(reading) > READ_AHEAD:
                    yield self._predict_batch(*reading.popleft())
                if next(batches) % RELEASE_EVERY == 0:
                    release_freed_memory()
            while reading:
                yield self._predict_batch(*reading.popleft())

    def _predict_batch(
        self, names: Sequence[object], images: Tensor, reading: Sequence[Future[ImageError | None]]
    ) -> list[Prediction]:
        """Answer for the images, (B, 3, S, S), that could be read."""
        errors = [future.result() for future in reading]
        readable = [index for index, error in enumerate(errors) if error is None]
        images = images if len(readable) == len(images) else images[readable]
        answers = iter(self.predict_images([str(names[index]) for index in readable], images) if readable else ())
        return [
            next(answers) if error is None else Prediction(str(name), None, None, str(error), self.model.trained_on)
            for name, error in zip(names, errors, strict=True)
        ]

    def predict_images(self, names: Sequence[str], images: Tensor) -> list[Prediction]:
        """Answer for images that are in memory.

        Args:
            names: Of B images.
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size; B at least 1.

        Returns:
            One prediction an image, in order.

        Raises:
            UserError: The images are of another type or shape.
        """
        rows = self._rows(images)
        return [self._answer(name, image, *row) for name, image, row in zip(names, images, rows, strict=True)]

    def _rows(self, images: Tensor) -> Iterator[tuple[float, float | None, float | None]]:
        """Compute the probability of each of the (B,) images, its spread among the folds, and the novelty."""
        answers = self.answers(images)
        probabilities = to_probability(answers.logits, self.model.temperature)
        columns = [
            [None] * len(images) if column is None else column.tolist() for column in (answers.spread, answers.novelty)
        ]
        return zip(probabilities.tolist(), *columns, strict=True)

    def _answer(
        self, file: str, tile: Tensor, probability: float, spread: float | None, novelty: float | None
    ) -> Prediction:
        if math.isnan(probability):
            reason = f"The model's answer is no number: its weights have diverged. Received: {file}"
            return Prediction(file, None, None, reason, self.model.trained_on)
        label = label_of(probability, self.model.threshold, self.model.refer, novelty)
        return Prediction(file, probability, label, None, self.model.trained_on, spread, novelty, self._note(tile))

    def _note(self, tile: Tensor) -> str | None:
        """Say what is unusual about a tile, uint8 of shape (3, S, S)."""
        sample = sample_pixels(tile.permute(1, 2, 0).numpy())
        if tissue_share(sample) < LEAST_TISSUE:
            return "hardly any tissue"
        return "grey, unlike the training tiles" if is_grey(sample) and not self._trained_on_grey else None

    @property
    def _trained_on_grey(self) -> bool:
        """True if most training tiles had no colour; a checkpoint of an earlier version does not say."""
        counts = self.model.data.get("checked", {})
        tiles = sum(split["tiles"] for split in (self.model.data.get("parts") or {}).values())
        return 2 * counts.get("grey", 0) > tiles
