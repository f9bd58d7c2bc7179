"""Exported models, `.onnx` and `.pt2`: read without running code, and asked as their checkpoint is."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl import __version__
from histo_pl.errors import UserError
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.contents import EXPORTED_SUFFIXES

ONNX, PROGRAM = EXPORTED_SUFFIXES
FACTS_FORMAT = 1  # of an exported model's metadata
FACTS_FILE = "histo_pl.json"  # inside a .pt2
PROBABILITY, LOGIT, NOVELTY, FOLD_LOGITS = "probability", "logit", "novelty", "fold_logits"  # outputs
KEPT = ("image_size", "resize", "threshold", "rule", "refer", "case_rule", "finished", "data")  # of a TrainedModel
INSTALL_ONNX = "pip install -e '.[onnx]'"
# Members of a .pt2 of PyTorch 2.6 and later that are data; others could be code, such as a compiled library.
PROGRAM_MEMBERS = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/", ".format/")
PROGRAM_FILES = ("archive_format", "archive_version", "byteorder", "version")

Outputs = Mapping[str, Tensor]


class ExportedNetwork(nn.Module):
    """The graph of an exported model, which runs on the processor.

    Args:
        run: From uint8 (B, 3, S, S) to the outputs by name, each of B values or rows.
        outputs: The outputs' names.
    """

    def __init__(self, run: Callable[[Tensor], Outputs], outputs: Sequence[str]) -> None:
        super().__init__()
        self.run = run
        self.tells_novelty = NOVELTY in outputs

    def answers_of_folds(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute calibrated logits and novelty.

        Args:
            images: uint8 of shape (B, 3, S, S).

        Returns:
            Logits of each fold, or of the one network, (K, B), and the novelty, (B,), or None.
        """
        outputs = self.run(images.cpu())
        folds = outputs[FOLD_LOGITS].T if FOLD_LOGITS in outputs else outputs[LOGIT][None]
        return folds, outputs.get(NOVELTY)

    def forward(self, images: Tensor) -> Tensor:
        """Compute calibrated logits, of shape (B,), of uint8 images (B, 3, S, S)."""
        return self.run(images.cpu())[LOGIT]


def is_exported(path: str | Path) -> bool:
    """Return whether a file's name ends as an exported model's."""
    return Path(path).suffix.lower() in EXPORTED_SUFFIXES


def facts_of(model: TrainedModel, checkpoints: Mapping[str, str], outputs: Sequence[str]) -> dict[str, Any]:
    """Describe a model in plain values, for its export to carry.

    The temperature is in the graph; hashes of tiles and cases stay in the checkpoint.

    Args:
        model: The model.
        checkpoints: See `hashes_of_checkpoint`.
        outputs: The names of the graph's outputs.
    """
    tta = model.decision_tta
    return {
        "format": FACTS_FORMAT,
        "histo_pl": __version__,
        "checkpoints": dict(checkpoints),
        "outputs": list(outputs),
        "classes": [model.data["negative_class"], model.data["positive_class"]],
        "positive_class": model.data["positive_class"],
        "mpp": model.mpp,
        "tile_size": model.tile_size and list(model.tile_size),
        "network": model.model_config,
        "decision_tta": {**tta, "temperature": tta["temperature"] / model.temperature} if tta else {},
        **{name: getattr(model, name) for name in KEPT},
        "refer": model.refer and list(model.refer),
    }


def load_exported(path: str | Path) -> TrainedModel:
    """Load a model that `python -m histo_pl export` wrote, without running any code that the file may hold.

    Args:
        path: A `.onnx` or `.pt2` file.

    Returns:
        The model; its temperature is 1, as the graph's logits are calibrated.

    Raises:
        UserError: There is no such file, it is damaged, of another program or a newer version, or onnxruntime is
            needed and not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no such model. Expected a file such as model.onnx. Received: {path}")
    facts, network = (_read_onnx if path.suffix.lower() == ONNX else _read_program)(path)
    kept = {name: facts[name] for name in KEPT if name != "refer"}
    return TrainedModel(
        network=network.eval(),
        model_config=facts["network"],
        temperature=1.0,
        refer=facts["refer"] and tuple(facts["refer"]),
        decision_tta=facts["decision_tta"],
        **kept,
    )


def _read_onnx(path: Path) -> tuple[dict[str, Any], ExportedNetwork]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(
            f"An ONNX model needs onnxruntime. Install it with {INSTALL_ONNX}. Received: {path}, no module named "
            f"onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
        facts = {name: json.loads(text) for name, text in texts.items()}
    except Exception as error:  # onnxruntime has an exception of its own for each kind of damage
        raise _unreadable(path, "an ONNX model", error) from error
    _check(facts, path)
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Outputs:
        values = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return facts, ExportedNetwork(run, names)


def _read_program(path: Path) -> tuple[dict[str, Any], ExportedNetwork]:
    try:
        facts = _read_facts(path)
        _check(facts, path)
        program = torch.export.load(path).module()
    except UserError:
        raise
    except Exception as error:  # PyTorch has one of its own for each kind of damage
        raise _unreadable(path, f"a program that PyTorch {torch.__version__} reads", error) from error

    def run(images: Tensor) -> Outputs:
        return dict(zip(facts["outputs"], program(images), strict=True))

    return facts, ExportedNetwork(run, facts["outputs"])


def _read_facts(path: Path) -> dict[str, Any]:
    """Read the metadata of a .pt2, and refuse one whose loading could run code: PyTorch unpickles what it finds."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inner = [name.partition("/")[2] for name in names]
        if len(set(names)) < len(names) or not all(map(_is_data, inner)):
            raise _holds_code(path)
        for name, within in zip(names, inner, strict=True):
            if within.endswith(".pt"):
                _refuse_pickled_code(archive.read(name), path)
            elif within.endswith("_config.json"):
                payloads = json.loads(archive.read(name)).get("config", {}).values()
                if any(
                    one["use_pickle"] or not one["path_name"].startswith(("weight_", "tensor_")) for one in payloads
                ):
                    raise _holds_code(path)
        found = [name for name, within in zip(names, inner, strict=True) if within == f"extra/{FACTS_FILE}"]
        return json.loads(archive.read(found[0])) if found else {}


def _is_data(member: str) -> bool:
    return member in PROGRAM_FILES or member.startswith(PROGRAM_MEMBERS)


def _refuse_pickled_code(content: bytes, path: Path) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _holds_code(path) from error


def _holds_code(path: Path) -> UserError:
    return UserError(
        f"This file holds more than a graph and its numbers, which could be code. Expected a .pt2 as "
        f"python -m histo_pl export writes it. Received: {path}"
    )


def _unreadable(path: Path, expected: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"This model cannot be read ({reason}). Expected {expected}. Received: {path}")


def _check(facts: Mapping[str, Any], path: Path) -> None:
    version = facts.get("format")
    if version is None or not {*KEPT, "network", "decision_tta", "outputs"} <= facts.keys():
        raise UserError(
            f"This model was not exported by histo_pl: its threshold, classes and resize are not known. Expected one "
            f"of python -m histo_pl export. Received: {path}"
        )
    if version > FACTS_FORMAT:
        raise UserError(
            f"This model was exported by a newer histo_pl. Expected a format of at most {FACTS_FORMAT}: update "
            f"histo_pl. Received: format {version} in {path}"
        )
