"""Prediction of image files: a table for a person, and a file if asked."""

import sys
from dataclasses import replace
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.hardware import keep_freed_memory as keep_memory
from histo_pl.images import OPENCV_RESIZE
from histo_pl.inference.files import find_images, find_others
from histo_pl.inference.predictor import Predictor
from histo_pl.inference.table import check_format, format_table, write_table
from histo_pl.models.checkpoint import CANNOT_TELL, SYNTHETIC, UNCALIBRATED_TTA, TrainedModel, find_checkpoint
from histo_pl.models.ensemble import load_model

PREPROCESS = {"opencv": OPENCV_RESIZE}


def predict(
    ckpt: str | None,
    img: str | None,
    out: str | None = None,
    device: str = "auto",
    batch_size: int = 32,
    preprocess: str | None = None,
    tta: bool = False,
    keep_freed_memory: bool = True,
) -> int:
    """Print a table of predictions, and write it if asked.

    Args:
        ckpt: A checkpoint's path, or `latest`.
        img: An image file, a folder or a pattern.
        out: A .csv or .json file to write.
        device: See `Predictor`.
        batch_size: Number of files a batch, at least 1.
        preprocess: The resize to the network's size. None: that of its training; `opencv`: that of the
            notebook's prediction.
        tta: See `Predictor`.
        keep_freed_memory: Keep freed memory for the next tensor, see `hardware.keep_freed_memory`.

    Returns:
        The exit status: 0, or 1 if any file has no answer.

    Raises:
        UserError: An argument is missing or wrong, or a single file was asked for and has no answer.
    """
    if keep_freed_memory:
        keep_memory()
    checkpoint, files = find_checkpoint(ckpt), find_images(img)
    passed_over = find_others(str(img))
    if out is not None:
        check_format(Path(out))
    predictor = Predictor(_load(checkpoint, preprocess), device, batch_size, tta)
    predictions = list(predictor.predict(files))
    errors = [p.error for p in predictions if p.error]
    if errors and files == [Path(str(img))]:
        raise UserError(errors[0])
    print(f"Model: {checkpoint}, trained on: {predictor.model.trained_on}", file=sys.stderr)
    print(format_table(predictions))
    if out is not None:
        write_table(predictions, Path(out))
    if tta and not predictor.model.decision_tta:
        print(UNCALIBRATED_TTA, file=sys.stderr)
    if not predictor.tells_novelty:
        print(CANNOT_TELL, file=sys.stderr)
    if passed_over:
        print(f"Passed over, as no images: {len(passed_over)} files, such as {passed_over[0]}", file=sys.stderr)
    if predictor.model.data["synthetic"]:
        print(SYNTHETIC, file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(files)} files have no answer.", file=sys.stderr)
    return int(bool(errors))


def _load(checkpoint: Path, preprocess: str | None) -> TrainedModel:
    if preprocess is None:
        return load_model(checkpoint)
    if preprocess not in PREPROCESS:
        raise UserError(
            f"preprocess is unknown. Expected {' or '.join(PREPROCESS)}, or null for the resize of the training. "
            f"Received: {preprocess}"
        )
    return replace(load_model(checkpoint), resize=PREPROCESS[preprocess])
