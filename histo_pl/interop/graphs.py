"""Writers of a model's graph: ONNX, a program of torch.export, and QuPath's folder."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.hardware import full_precision
from histo_pl.interop.deployed import DeployedClassifier, TwoLogits
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.exported import FACTS_FILE, INSTALL_ONNX
from histo_pl.storage import atomic_write_text

OPSET = 18  # of ONNX: PyTorch's exporter writes it without a conversion
BATCH = torch.export.Dim("batch", max=2**31 - 1)  # an end, without which some releases refuse it
MOST_BYTES = 2**31 - 2**20  # of an ONNX file, which protobuf limits to 2 GiB
WSINFER_SPEC = "1.0"  # of config.json


def write_onnx(classifier: DeployedClassifier, facts: Mapping[str, Any], image_size: int, file: Path) -> None:
    """Write an ONNX model with the batch's size left open and its metadata as JSON, one property each.

    Args:
        classifier: The graph.
        facts: Plain values, by name.
        image_size: Side of the input in pixels.
        file: The .onnx file to write.

    Raises:
        UserError: onnx or onnxscript is not installed, or the weights exceed what one file can hold.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (PyTorch's exporter imports it)
    except ModuleNotFoundError as error:
        raise UserError(
            f"An export to ONNX needs onnx and onnxscript. Install them with {INSTALL_ONNX}. "
            f"Received: no module named {error.name}"
        ) from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in classifier.state_dict().values())
    if size > MOST_BYTES:
        raise UserError(
            f"An ONNX file cannot hold so many weights. Expected at most 2 GiB: use --to torch. "
            f"Received: {size:,} bytes"
        )
    with quietly():
        program = torch.onnx.export(
            classifier,
            (_example(image_size),),
            dynamo=True,
            input_names=["images"],
            output_names=list(classifier.outputs),
            dynamic_shapes=({0: BATCH},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    onnx.save(model, file)


def write_program(classifier: DeployedClassifier, facts: Mapping[str, Any], image_size: int, file: Path) -> None:
    """Write a program of torch.export with the batch's size left open and its metadata as a file inside.

    Args:
        classifier: The graph.
        facts: Plain values, by name.
        image_size: Side of the input in pixels.
        file: The .pt2 file to write.
    """
    with quietly():
        example = (_example(image_size),)
        program = torch.export.export(classifier, example, dynamic_shapes=({0: BATCH},), strict=False)
        torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts)})


def write_qupath(model: TrainedModel, spacing: float, folder: Path) -> None:
    """Write the two files of a WSInfer model folder: torchscript_model.pt and config.json.

    Args:
        model: The model.
        spacing: Micrometres per pixel of the network's input, positive.
        folder: The folder to write into.
    """
    with quietly(), torch.no_grad(), full_precision():
        traced = torch.jit.trace(TwoLogits(model).eval(), torch.rand(2, 3, model.image_size, model.image_size))
        torch.jit.save(traced, folder / "torchscript_model.pt")
    config = {
        "spec_version": WSINFER_SPEC,
        "architecture": model.model_config.get("architecture", model.model_config["name"]),
        "num_classes": 2,
        "patch_size_pixels": model.image_size,
        "spacing_um_px": spacing,
        "class_names": [model.data["negative_class"], model.data["positive_class"]],
        "transform": [{"name": "ToTensor"}],
    }
    with atomic_write_text(folder / "config.json") as stream:
        stream.write(json.dumps(config, indent=2) + "\n")


def _example(image_size: int) -> Tensor:
    """Return a batch of two: a batch of one would be taken for the only size."""
    return torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporters' own warnings from the user: the parity test tells whether the graph is right."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
