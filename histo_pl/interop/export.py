"""Export of a checkpoint for programs that know nothing of histo_pl: compared with it, or not written."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.hardware import full_precision
from histo_pl.inference import Predictor
from histo_pl.interop.deployed import DeployedClassifier, logit_of
from histo_pl.interop.graphs import quietly, write_onnx, write_program, write_qupath
from histo_pl.interop.model_card import Exported, write_card
from histo_pl.interop.parity import Answer, ParityTiles, compare, read_tiles
from histo_pl.models.checkpoint import CANNOT_TELL, SYNTHETIC, UNFINISHED, TrainedModel, hashes_of_checkpoint
from histo_pl.models.ensemble import load_original
from histo_pl.models.exported import facts_of, load_exported
from histo_pl.probability import BENIGN, MALIGNANT, to_probability
from histo_pl.storage import atomic_directory

ONNX, PROGRAM, QUPATH = "onnx", "torch", "qupath"
FILES: Mapping[str, str] = {ONNX: "model.onnx", PROGRAM: "model.pt2", QUPATH: "torchscript_model.pt"}
EXAMPLE = Path(__file__).with_name("example.py.txt")


def export(
    checkpoint: str | Path, out: str | Path, to: str = ONNX, mpp: float | None = None, tiles: str | Path | None = None
) -> str:
    """Write a folder with a model that other programs run, and its card.

    Args:
        checkpoint: A `best.ckpt`, a run's folder, `latest`, or the folder of a cross-validation.
        out: The folder to write, a new one.
        to: `onnx`, `torch` (a .pt2 of torch.export) or `qupath` (a WSInfer model folder).
        mpp: Micrometres per pixel of the training tiles' own files, for QuPath; None: what the checkpoint says.
        tiles: A folder of tiles to compare the export with the checkpoint on; None: some are drawn.

    Returns:
        What was written, how it compares, and the next command, for a person.

    Raises:
        UserError: An argument is not as expected, the model cannot be exported, a package is missing, or the export
            does not answer as the checkpoint: nothing is written then.
    """
    folder = Path(out)
    _check(folder, to, mpp)
    path, model = load_original(checkpoint)
    classifier = DeployedClassifier(model).eval()
    mpp = _own_mpp(model, mpp)
    spacing = _spacing(model, mpp) if to == QUPATH else None
    test_tiles = read_tiles(None if tiles is None else Path(tiles), model)
    with atomic_directory(folder) as unfinished:
        if spacing is not None:
            write_qupath(model, spacing, unfinished)
            found = _compare_two_logits(model, unfinished / FILES[QUPATH], test_tiles)
        else:
            facts = facts_of(model, hashes_of_checkpoint(path), classifier.outputs)
            _write_graph(classifier, facts, model.image_size, to, unfinished)
            found = _compare_graph(model, unfinished / FILES[to], test_tiles)
        write_card(path, model, unfinished / "README.md", Exported(to, unfinished / FILES[to], mpp, spacing))
    notes = [] if model.tells_novelty or to == QUPATH else [CANNOT_TELL]
    notes += [SYNTHETIC] if model.data["synthetic"] else []
    notes += [] if model.finished else [f"Its training is {UNFINISHED}."]
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    return "\n".join([f"Wrote {folder}: {files}", found, *notes, _next_step(folder, to)])


def _check(folder: Path, to: str, mpp: float | None) -> None:
    if to not in FILES:
        raise UserError(f"The kind of export is unknown. Expected one of {', '.join(FILES)}. Received: {to}")
    if mpp is not None and to != QUPATH:
        raise UserError(f"The scale is for QuPath alone. Expected --mpp with --to qupath. Received: --to {to}")
    if mpp is not None and not 0 < mpp < np.inf:
        raise UserError(f"mpp is out of range. Expected micrometres per pixel, above 0. Received: {mpp}")
    if os.path.lexists(folder):
        raise UserError(f"The folder to write exists already. Expected a new name. Received: {folder}")


def _own_mpp(model: TrainedModel, mpp: float | None) -> float | None:
    """Return the micrometres per pixel of the training tiles' own files, which may be said once."""
    if mpp is not None and model.mpp is not None and not math.isclose(mpp, model.mpp, rel_tol=1e-3):
        raise UserError(
            f"The checkpoint says another scale of its training tiles, {model.mpp:g} micrometres per pixel. Leave "
            f"--mpp out. Received: --mpp {mpp:g}"
        )
    return model.mpp if mpp is None else mpp


def _spacing(model: TrainedModel, mpp: float | None) -> float:
    """Return the micrometres per pixel of the network's input: a training tile's field of view over its side."""
    if mpp is None:
        raise UserError(
            "QuPath must know the scale of the training tiles, and the checkpoint does not say it. Expected --mpp 0.5, "
            "the micrometres per pixel of their own files. Received: no --mpp"
        )
    if model.tile_size is None:
        raise UserError(
            "QuPath must know the size of the training tiles, and this checkpoint of an earlier version does not say "
            "it. Expected one that was trained by this version. Received: no tile_size"
        )
    width, height = model.tile_size
    if width != height:
        raise UserError(
            f"QuPath reads square tiles alone, and the training tiles were not: a square would be another field of "
            f"view, stretched in another way. Expected a model of square tiles. Received: {width}x{height} pixels"
        )
    return width * mpp / model.image_size


def _write_graph(
    classifier: DeployedClassifier, facts: Mapping[str, Any], image_size: int, to: str, folder: Path
) -> None:
    if to == PROGRAM:
        write_program(classifier, facts, image_size, folder / FILES[to])
        return
    write_onnx(classifier, facts, image_size, folder / FILES[to])
    (folder / "example.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")


def _compare_graph(model: TrainedModel, file: Path, tiles: ParityTiles) -> str:
    exported = Predictor(load_exported(file), "cpu")
    wanted = _answers(Predictor(model, "cpu"), tiles.images)
    return compare(wanted, lambda images: _answers(exported, images), tiles)


def _answers(predictor: Predictor, images: Tensor) -> Answer:
    predictions = predictor.predict_images([""] * len(images), images)
    probability = np.array([one.probability for one in predictions], np.float64)  # NaN of None
    return Answer(probability, [str(one.label) for one in predictions])


def _compare_two_logits(model: TrainedModel, file: Path, tiles: ParityTiles) -> str:
    """Compare the graph of QuPath by what its softmax and the larger of two make of it."""
    probability = Predictor(model, "cpu").probabilities(tiles.images)
    moved = to_probability(torch.logit(probability.double()) - logit_of(model.threshold))
    wanted = Answer(moved.numpy(), _labels(probability > model.threshold))
    with quietly():
        graph = torch.jit.load(file)

    @torch.inference_mode()
    def ask(images: Tensor) -> Answer:
        with full_precision():
            shares = graph(images.float() / 255).double().softmax(1)
        return Answer(shares[:, 1].numpy(), _labels(shares.argmax(1) == 1))

    return compare(wanted, ask, tiles)


def _labels(malignant: Tensor) -> list[str]:
    return [MALIGNANT if one else BENIGN for one in malignant.tolist()]


def _next_step(folder: Path, to: str) -> str:
    if to == QUPATH:
        return f"In QuPath: Extensions > WSInfer, folder of user models: {folder.resolve().parent}. See its README.md."
    command = f"python predict.py ckpt={shlex.quote(str(folder / FILES[to]))} img=TILES"
    return f"To ask it: {command}" + (f", or python {folder / 'example.py'} TILE" if to == ONNX else "")
