"""Optimisers that look at the whole network."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Adam


def adam(
    network: nn.Module,
    *,
    lr: float = 1e-3,
    betas: Iterable[float] = (0.9, 0.999),
    eps: float = 1e-7,
    base_fan_in: int | None = None,
) -> Adam:
    """Adam as the notebook sets it, with the rate of wide dense layers scaled down if asked.

    Adam moves every weight by about `lr` in its first step, so a dense layer's output moves by about `lr`
    times the sum of its inputs: at 512x512 pixels the notebook's 492,032 inputs push all 256 sigmoids to 0 or
    1 in one step, where their gradient is 0 for good. A rate of lr * base_fan_in / fan_in keeps that
    movement independent of the image's size, as the maximal-update parametrisation has it for Adam
    (Yang et al. 2022, arXiv:2203.03466, table 3).

    Args:
        network: Its parameters are optimised.
        lr: Learning rate.
        betas: Decay of the running means of gradient and squared gradient, each in [0, 1).
        eps: Added to the denominator. Keras's default is 1e-7, PyTorch's 1e-8.
        base_fan_in: Dense layers with more inputs than this get the scaled rate. None: all get `lr`.

    Returns:
        The optimiser, with the groups `base` and, if any layer is wide, `wide_<fan_in>`.
    """
    wide = [m for m in network.modules() if base_fan_in and _fan_in(m) > base_fan_in]
    scaled = {id(m.weight) for m in wide}
    groups: list[dict[str, Any]] = [
        {"name": "base", "params": [p for p in network.parameters() if id(p) not in scaled]}
    ]
    for layer in wide:
        rate = lr * (base_fan_in or 0) / _fan_in(layer)
        groups.append({"name": f"wide_{_fan_in(layer)}", "params": [layer.weight], "lr": rate})
    first, second = betas
    return Adam(groups, lr=lr, betas=(first, second), eps=eps, fused=True)


def _fan_in(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else 0
