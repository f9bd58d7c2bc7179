"""A network from plain values, which a checkpoint stores."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from histo_pl.errors import UserError
from histo_pl.models.backbones import TORCHVISION, timm_backbone, torchvision_backbone
from histo_pl.models.keras_cnn import KerasCNN
from histo_pl.models.preprocessing import build_preprocessing

# A closed list, so that opening a stranger's checkpoint can build these and nothing else.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "keras_cnn": KerasCNN,
    **{name: partial(torchvision_backbone, name) for name in TORCHVISION},
    "timm": timm_backbone,
}
FORMAT_VERSION = 3  # of checkpoints; 1 does not state it, 2 has `seen` for `training_hashes` and local paths
PREPROCESSING = ("stain", "mean", "std")


def build_network(model_config: Mapping[str, Any]) -> nn.Sequential:
    """Build preprocessing and backbone as one module, from bytes to logits.

    Args:
        model_config: `name` of the backbone and its keyword arguments, and those of `build_preprocessing`.

    Returns:
        A module with the parts `preprocessing` and `backbone`; uint8 (B, 3, S, S) to logits (B,).

    Raises:
        UserError: The name or an argument is unknown.
    """
    preprocessing = build_preprocessing(**{key: model_config[key] for key in PREPROCESSING if key in model_config})
    arguments = {key: value for key, value in model_config.items() if key not in ("name", *PREPROCESSING)}
    name = model_config.get("name")
    if name not in BACKBONES:
        raise UserError(f"The network is unknown. Expected one of {', '.join(BACKBONES)}. Received: {name}")
    try:
        backbone = BACKBONES[name](**arguments)
    except TypeError as error:
        raise UserError(f"The network {name} does not take these arguments ({error}). Received: {arguments}") from error
    return nn.Sequential(OrderedDict(preprocessing=preprocessing, backbone=backbone))
