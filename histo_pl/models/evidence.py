"""Evidence maps: the contribution of each place of a tile to the logit."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from histo_pl.errors import UserError
from histo_pl.models.backbones import EncoderWithHead, PooledStages
from histo_pl.models.ensemble import FoldEnsemble
from histo_pl.models.exported import ExportedNetwork
from histo_pl.models.keras_cnn import KerasCNN

EXACT, INTEGRATED, CAM, OCCLUSION = "exact", "integrated_gradients", "grad_cam", "occlusion"
METHODS: Mapping[str, str] = {  # and what their numbers are, for people
    EXACT: "exact contributions, which sum to the logit",
    INTEGRATED: "integrated gradients from white glass (Sundararajan et al., ICML 2017)",
    CAM: "Grad-CAM of the last spatial layer (Selvaraju et al., ICCV 2017)",
    OCCLUSION: "the logit lost where a square is covered by the tile's mean colour (Zeiler and Fergus, ECCV 2014)",
}
LEAST_STEPS, MOST_STEPS = 32, 2048  # of integrated gradients
COMPLETENESS = 0.01  # the error that more steps are taken for, as a share of what is to be explained, at least of 1
AT_ONCE = 8  # tiles or steps a forward pass
WINDOWS = 8  # occluding squares a side of the tile


@dataclass(frozen=True)
class Evidence:
    """The evidence maps of B tiles by one method.

    Attributes:
        maps: Contributions to the logit, positive for malignant, float32 of shape (B, S, S), on the CPU.
        method: One of `METHODS`.
        constant: The part of the logit that no place has, spread evenly over `maps`, of shape (B,); None by a method
            whose maps do not sum to the logit.
        error: The difference between the sum of the maps and what they explain, of shape (B,); None by such a method.
    """

    maps: Tensor
    method: str
    constant: Tensor | None = None
    error: Tensor | None = None


def method_for(network: nn.Module, wanted: str | bool = True) -> str | None:
    """Choose the method of a network, before any work is done.

    Args:
        network: As `build_network` makes it, or a `FoldEnsemble`.
        wanted: One of `METHODS`; True: the most faithful that the network allows; False: none.

    Returns:
        One of `METHODS`, or None.

    Raises:
        UserError: The method is unknown, the network does not allow it, or it needs captum, which is not installed.
    """
    if wanted is False:
        return None
    if isinstance(network, ExportedNetwork):
        raise UserError(
            f"An exported model has no evidence maps. Ask the checkpoint that it was made of. "
            f"Received: explain={wanted}"
        )
    backbone = first_network(network).get_submodule("backbone")
    is_linear = isinstance(backbone, EncoderWithHead) and isinstance(backbone.encoder, PooledStages)
    has_layers = bool(_spatial_layers(backbone))
    allowed = [EXACT] * is_linear + [INTEGRATED] + [CAM] * has_layers + [OCCLUSION]
    best = EXACT if is_linear else INTEGRATED if isinstance(backbone, KerasCNN) else CAM if has_layers else OCCLUSION
    method = best if wanted is True else wanted
    if method not in allowed:
        raise UserError(
            f"This network has no such evidence map. Expected explain=true or one of {', '.join(allowed)}. "
            f"Received: explain={wanted}"
        )
    if method != EXACT:
        _captum()
    return method


def explain(network: nn.Module, images: Tensor, method: str) -> Evidence:
    """Compute evidence maps.

    Of several folds the maps are the mean of theirs, each of its calibrated logit.

    Args:
        network: As `build_network` makes it, or a `FoldEnsemble`; in evaluation mode.
        images: uint8 of shape (B, 3, S, S), on the network's device.
        method: As `method_for` returns it.

    Returns:
        The maps.

    Raises:
        UserError: The method needs captum, which is not installed.
    """
    if not isinstance(network, FoldEnsemble):
        return _explain_in_parts(network, images, method)
    found = [_explain_in_parts(one, images, method) for one in network.networks]
    scales = [1 / temperature for temperature in network.temperatures]

    def mean(parts: Sequence[Tensor | None]) -> Tensor | None:
        scaled = [part * scale for part, scale in zip(parts, scales, strict=True) if part is not None]
        return torch.stack(scaled).mean(0) if scaled else None

    maps = mean([one.maps for one in found])
    assert maps is not None
    return Evidence(maps, method, mean([one.constant for one in found]), mean([one.error for one in found]))


def _explain_in_parts(network: nn.Module, images: Tensor, method: str) -> Evidence:
    explainer = _EXPLAINERS[method]
    parts = [explainer(network, part) for part in images.split(AT_ONCE)]

    def joined(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known).cpu() if known else None

    maps = torch.cat([part.maps for part in parts]).float().cpu()
    return Evidence(maps, method, joined([part.constant for part in parts]), joined([part.error for part in parts]))


@torch.no_grad()
def _exact(network: nn.Module, images: Tensor) -> Evidence:
    """Divide the logit of a linear head on channels' means and deviations among the positions.

    With m a channel's mean and d its deviation over N positions, the position with the value a contributes a / N to m
    and (a - m)**2 / ((N - 1) * d) to d. Zero is the mean training tile; the head's bias is the constant.
    """
    backbone: Any = network.get_submodule("backbone")
    encoder = backbone.encoder
    inputs = network.get_submodule("preprocessing")(images)
    stages = encoder.stages.forward_intermediates(inputs, indices=encoder.indices, intermediates_only=True)
    weight = (backbone.head.weight[0] / backbone.standardize.std).double()
    center = backbone.standardize.mean.double()
    maps = torch.zeros(len(images), *images.shape[2:], dtype=torch.float64, device=images.device)
    start = 0
    for stage in stages:
        channels = stage.shape[1]
        means, deviations = slice(start, start + channels), slice(start + channels, start + 2 * channels)
        evidence = _of_means(stage.double(), weight[means], center[means])
        evidence += _of_deviations(stage.double(), weight[deviations], center[deviations])
        maps += _spread(evidence, images.shape[2:])
        start += 2 * channels
    constant = backbone.head.bias.double().expand(len(images))
    maps += constant[:, None, None] / maps[0].numel()
    error = (maps.sum((1, 2)) - backbone(inputs)).abs()
    return Evidence(maps.float(), EXACT, constant.float(), error.float())


def _of_means(stage: Tensor, weight: Tensor, center: Tensor) -> Tensor:
    """Return the contributions of the means, (B, H, W), of a stage (B, C, H, W)."""
    return torch.einsum("bchw,c->bhw", stage - center[:, None, None], weight) / stage[0, 0].numel()


def _of_deviations(stage: Tensor, weight: Tensor, center: Tensor) -> Tensor:
    """Return the contributions of the deviations, (B, H, W), of a stage (B, C, H, W)."""
    count = stage[0, 0].numel()
    departures = (stage - stage.mean((2, 3), keepdim=True)).square()
    deviation = (departures.sum((2, 3)) / (count - 1)).sqrt()
    scale = weight / ((count - 1) * deviation.clamp(min=1e-12))
    return torch.einsum("bchw,bc->bhw", departures, scale) - (weight * center).sum() / count


def _spread(evidence: Tensor, shape: Sequence[int]) -> Tensor:
    """Divide the values of positions, (B, H, W), evenly among the pixels of a tile, so that their sum stays."""
    rows, columns = (
        torch.arange(side, device=evidence.device) * positions // side
        for side, positions in zip(shape, evidence.shape[1:], strict=True)
    )
    pixels = rows.bincount(minlength=evidence.shape[1])[:, None] * columns.bincount(minlength=evidence.shape[2])
    return (evidence / pixels)[:, rows][:, :, columns]


def _integrated_gradients(network: nn.Module, images: Tensor) -> Evidence:
    """Integrate the gradient on the way from white glass to the tile, in steps until the sum is complete."""
    captum = _captum()
    backbone: Any = network.get_submodule("backbone")
    preprocess = network.get_submodule("preprocessing")
    inputs, baseline = preprocess(images), preprocess(torch.full_like(images, 255))
    method = captum.IntegratedGradients(backbone)
    with torch.no_grad():
        at_baseline = backbone(baseline).float()
        wanted = backbone(inputs).float() - at_baseline
    maps, error = [], []
    for index in range(len(images)):
        steps = LEAST_STEPS
        while True:
            one = slice(index, index + 1)
            found = method.attribute(
                inputs[one].detach(), baseline[one].detach(), n_steps=steps, internal_batch_size=AT_ONCE
            ).sum(1)[0]
            missing = (found.sum() - wanted[index]).abs()
            if missing <= COMPLETENESS * max(1.0, float(wanted[index].abs())) or steps >= MOST_STEPS:
                break
            steps *= 2
        maps.append(found.detach() + at_baseline[index] / found.numel())
        error.append(missing.detach())
    return Evidence(torch.stack(maps), INTEGRATED, at_baseline, torch.stack(error))


def _grad_cam(network: nn.Module, images: Tensor) -> Evidence:
    captum = _captum()
    backbone: Any = network.get_submodule("backbone")
    layer = _spatial_layers(backbone)[-1]
    inputs = network.get_submodule("preprocessing")(images).requires_grad_()
    found = captum.LayerGradCam(backbone, layer).attribute(inputs)
    return Evidence(interpolate(found.detach(), images.shape[2:], mode="bilinear")[:, 0], CAM)


@torch.no_grad()
def _occlusion(network: nn.Module, images: Tensor) -> Evidence:
    captum = _captum()
    backbone: Any = network.get_submodule("backbone")
    inputs = network.get_submodule("preprocessing")(images)
    side = max(1, images.shape[2] // WINDOWS)
    found = captum.Occlusion(backbone).attribute(
        inputs,
        sliding_window_shapes=(3, side, side),
        strides=(3, side, side),
        baselines=inputs.mean((2, 3), keepdim=True).expand_as(inputs),
    )
    return Evidence(found.mean(1), OCCLUSION)


_EXPLAINERS: Mapping[str, Callable[[nn.Module, Tensor], Evidence]] = {
    EXACT: _exact,
    INTEGRATED: _integrated_gradients,
    CAM: _grad_cam,
    OCCLUSION: _occlusion,
}


@torch.no_grad()
def with_random_weights(network: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Copy a network and draw all its weights anew, for the sanity check of its maps (Adebayo et al., NeurIPS 2018).

    Args:
        network: As `build_network` makes it.
        images: uint8 of shape (B, 3, S, S), B at least 2: the features of an encoder are standardised on them.
        seed: Decides the weights.
    """
    copy = deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copy.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    backbone: Any = copy.get_submodule("backbone")
    if isinstance(backbone, EncoderWithHead):
        backbone.standardize.fit(backbone.encoder(copy.get_submodule("preprocessing")(images)))
    return copy.eval().requires_grad_(False)


def first_network(network: nn.Module) -> nn.Module:
    """Return the first of a `FoldEnsemble`'s networks, or the one network itself."""
    return network.networks[0] if isinstance(network, FoldEnsemble) else network


def _spatial_layers(backbone: nn.Module) -> list[nn.Module]:
    """List the convolutions of a convolutional network in their order; none of a transformer or of `KerasCNN`.

    `KerasCNN` keeps its maps in oneDNN's layout, which captum cannot read.
    """
    if isinstance(backbone, KerasCNN) or any(
        isinstance(module, nn.MultiheadAttention) or hasattr(module, "qkv") for module in backbone.modules()
    ):
        return []
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]


def _captum() -> Any:  # noqa: ANN401
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise UserError(
            "This evidence map needs captum. Install it with pip install -e '.[explain]'. "
            "Received: no module named captum"
        ) from error
    return attr
