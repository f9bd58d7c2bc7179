"""The contents of checkpoint files: read without running code, checked, and of older formats filled in."""

import pickle
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.images import RESIZE
from histo_pl.models.network import FORMAT_VERSION
from histo_pl.storage import load_tensors

EXPORTED_SUFFIXES = (".onnx", ".pt2")
KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
PREFIX = "network."  # of the weights' names: Lightning prepends the name of TileClassifier's attribute
REQUIRED = ("network", "image_size", "data")  # metadata without which there is no prediction
DEFAULTS: Mapping[str, Any] = {  # of metadata that an older checkpoint may lack
    "resize": RESIZE,
    "threshold": 0.5,
    "temperature": 1.0,
    "rule": "fixed",
    "refer": None,
    "decision_tta": {},
    "training_cases": [],
    "case_rule": {},
    "novelty": None,
}

_NO_CHECKPOINT = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError)


def read_contents(path: Path, expected: str = "best.ckpt") -> dict[str, Any]:
    """Read a checkpoint of PyTorch without running any code that it may hold.

    Args:
        path: The file.
        expected: The name of the file that was expected, for errors.

    Returns:
        Its contents, the tensors mapped from the file; empty if they are no dictionary.

    Raises:
        UserError: There is no such file, it is damaged, or no checkpoint.
    """
    if not path.is_file():
        raise UserError(
            f"There is no such checkpoint. Expected a file such as outputs/.../best.ckpt, or latest for the "
            f"newest run here. Received: {path}"
        )
    if path.suffix.lower() in KERAS_SUFFIXES:
        raise UserError(
            f"This is a Keras model. Make it a checkpoint first: python -m histo_pl convert "
            f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.ckpt')))}. Received: {path}"
        )
    refuse_exported(path)
    _refuse_torchscript(path)
    try:
        contents = load_tensors(path)
    except _NO_CHECKPOINT as error:
        if _is_cut(path):
            raise UserError(
                f"This checkpoint is damaged: its end is missing, as after a full disk or an interrupted copy. "
                f"Expected a whole {expected}. Fetch it again. Received: {path} with {path.stat().st_size} bytes"
            ) from error
        raise UserError(f"This file is no checkpoint. Expected a {expected}. Received: {path}") from error
    return contents if isinstance(contents, dict) else {}


def read_metadata(contents: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Check a checkpoint's metadata and fill in what an older format lacks.

    Args:
        contents: As `read_contents` returns them.
        path: The file, for errors.

    Returns:
        The arguments of `TileClassifier` that are plain values, by name.

    Raises:
        UserError: The checkpoint is not of histo_pl, of a newer format, or incomplete.
    """
    metadata = contents.get("hyper_parameters")
    if not isinstance(metadata, dict) or not {"network", "data"} & metadata.keys():
        raise UserError(f"This checkpoint was not made by histo_pl. Expected a best.ckpt. Received: {path}")
    _check_version(metadata, path)
    missing = [name for name in REQUIRED if name not in metadata]
    missing += [] if network_state(contents) else ["the network's weights"]
    if missing:
        raise UserError(
            f"This checkpoint is incomplete: it lacks {', '.join(missing)}. Expected a best.ckpt as train.py writes "
            f"it. Received: {path}"
        )
    hashes = metadata.get("training_hashes", metadata.get("seen"))  # `seen` up to format 2
    return {**DEFAULTS, **metadata, "training_hashes": dict(hashes or {})}


def network_state(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the network's state dictionary (tensors of any shape) by the names that the network itself has.

    Args:
        contents: As `read_contents` returns them.
    """
    weights = contents.get("state_dict") or {}
    return {name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)}


def is_finished(contents: Mapping[str, Any]) -> bool:
    """Tell if the training ended; in format 1, which does not state it, only a last.ckpt has an optimizer."""
    return contents["hyper_parameters"].get("finished", not contents.get("optimizer_states"))


def refuse_exported(path: Path) -> None:
    """Refuse a model that was exported.

    Args:
        path: A file that may be one.

    Raises:
        UserError: It is one.
    """
    if path.suffix.lower() in EXPORTED_SUFFIXES:
        raise UserError(
            f"This is an exported model, which predict.py alone takes. Expected the checkpoint that it was made of. "
            f"Received: {path}"
        )


def _refuse_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise UserError(
                f"This is TorchScript, such as an export for QuPath, which holds neither threshold nor novelty. "
                f"Expected the checkpoint that it was made of, or its export as ONNX. Received: {path}"
            )


def _check_version(metadata: Mapping[str, Any], path: str | Path) -> None:
    version = metadata.get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"This checkpoint was made by a newer histo_pl. Expected a format of at most {FORMAT_VERSION}: update "
            f"histo_pl. Received: format {version} in {path}"
        )


def _is_cut(path: Path) -> bool:
    """Tell whether a file begins as a checkpoint does, or is empty, and lacks its end, a zip file's directory."""
    with path.open("rb") as stream:
        beginning = stream.read(4)
    return beginning in (b"", b"PK\x03\x04") and not zipfile.is_zipfile(path)
