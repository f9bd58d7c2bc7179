"""A trained model's opinion on image files."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from histo_pl.appearance import LEAST_TISSUE, is_grey, sample_pixels, tissue_share
from histo_pl.errors import ImageError, UserError
from histo_pl.hardware import usable_cores
from histo_pl.images import read_tile
from histo_pl.inference.files import find_images
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.ensemble import FoldEnsemble, join_folds
from histo_pl.models.views import mean_over_views
from histo_pl.probability import label_of, to_probability

BATCHES_AHEAD = 1


@dataclass(frozen=True)
class Prediction:
    """The answer for one file.

    Attributes:
        file: The file, as it was named.
        probability: Of malignancy, in [0, 1]; None if there is no answer.
        label: Malignant, Benign, or `Uncertain: refer` within the checkpoint's band; None if there is no answer.
        error: The reason why there is no answer; None if all went well.
        spread: Standard deviation of the folds' probabilities, in [0, 0.5]; None of a single model.
        note: A reason to doubt the answer: hardly any tissue, or no colour; None if there is none.
        trained_on: The name of the data that trained the model.
    """

    file: str
    probability: float | None
    label: str | None
    error: str | None
    trained_on: str
    spread: float | None = None
    note: str | None = None

    def row(self) -> dict[str, str | float | None]:
        """Return the attributes as a row of a table; the probability is in [0, 1]."""
        return asdict(self)


class Predictor:
    """Asks a trained model about image files.

    Args:
        model: A loaded model.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one.
        batch_size: Files a batch.
        tta: Answer by the mean logit of a tile's eight views, turned by quarters and mirrored, which takes
            eight times as long (test-time augmentation), and by the temperature, threshold and band that were chosen
            for it; those of single views, if none were (`TrainedModel.decision_tta`).

    Raises:
        UserError: There is no such device, or the batch size is below 1.
    """

    def __init__(self, model: TrainedModel, device: str = "auto", batch_size: int = 32, tta: bool = False) -> None:
        if not isinstance(model, TrainedModel):
            raise UserError(f"Expected a model that load_model returned. Received: {type(model).__name__}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is out of range. Expected a whole number, at least 1. Received: {batch_size}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.network = model.network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"This device cannot be used. Expected auto or cpu. Received: {device}") from error
        self.model = model.of_views() if tta else model
        self.device = device
        self.batch_size = batch_size
        self.tta = tta

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Compute logits, which the temperature has not divided.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255], at the model's image size.

        Returns:
            float32 of shape (B,), on the CPU.

        Raises:
            UserError: The images are of another type or shape.
        """
        self._check(images)
        return _join(self._logits_of_folds(images.to(self.device))).float().cpu()

    def _logits_of_folds(self, images: Tensor) -> Tensor:
        """Compute the logits of each fold's network, or of the one network, of shape (K, B)."""

        def compute(images: Tensor) -> Tensor:
            if isinstance(self.network, FoldEnsemble):
                return self.network.logits_of_folds(images)
            return self.network(images).float()[None]

        return mean_over_views(compute, images) if self.tta else compute(images)

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
        batches = [files[start : start + self.batch_size] for start in range(0, len(files), self.batch_size)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            reading = [pool.submit(self._read, file) for file in batches[0]] if batches else []
            for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
                tiles = [tile.result() for tile in reading]
                reading = [pool.submit(self._read, file) for file in following]  # while the network looks at these
                yield from self._predict_batch(batch, tiles)

    def _predict_batch(self, files: Sequence[Path], tiles: Sequence[Tensor | ImageError]) -> Iterator[Prediction]:
        readable = [tile for tile in tiles if isinstance(tile, Tensor)]
        answers = iter(self._answers(torch.stack(readable)) if readable else ())
        for file, tile in zip(files, tiles, strict=True):
            if isinstance(tile, ImageError):
                yield Prediction(str(file), None, None, str(tile), self.model.trained_on)
            else:
                yield self._answer(file, tile, *next(answers))

    @torch.inference_mode()
    def _answers(self, images: Tensor) -> list[tuple[float, float | None]]:
        """Compute the probability of each of the (B,) images, and its spread among the folds."""
        folds = self._logits_of_folds(images.to(self.device)).cpu()
        probabilities = to_probability(_join(folds).float(), self.model.temperature).tolist()
        if len(folds) == 1:
            return [(probability, None) for probability in probabilities]
        return list(zip(probabilities, to_probability(folds).std(0, correction=0).tolist(), strict=True))

    def _read(self, file: Path) -> Tensor | ImageError:
        try:
            return read_tile(file, self.model.image_size, self.model.resize)
        except ImageError as error:
            return error

    def _answer(self, file: Path, tile: Tensor, probability: float, spread: float | None) -> Prediction:
        if math.isnan(probability):
            reason = f"The model's answer is no number: its weights have diverged. Received: {file}"
            return Prediction(str(file), None, None, reason, self.model.trained_on)
        label = label_of(probability, self.model.threshold, self.model.refer)
        return Prediction(str(file), probability, label, None, self.model.trained_on, spread, self._note(tile))

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


def _join(folds: Tensor) -> Tensor:
    """Make one logit of each image of the folds' logits, of shape (K, B)."""
    return folds[0] if len(folds) == 1 else join_folds(folds)
