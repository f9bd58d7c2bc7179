"""Optimizers whose parameter groups depend on the whole network."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW


class KerasAdam(Adam):
    """Adam with `eps` added where Keras adds it: before the bias correction, PyTorch adds it after.

    Keras 3.15 moves a weight by lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps); PyTorch's own Adam by
    lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps). The first is the second with eps / sqrt(1 - beta2^t),
    which is 32 times eps at the first step and 1.26 times at the thousandth. It matters where gradients are as
    small as that (1e-6 and below): in the first steps, behind frozen sigmoids. Elsewhere the two agree. On a GPU it
    waits for the device once a step, to ask which step it is.

    Args:
        params: As for `torch.optim.Adam`.
        eps: Keras's `epsilon`, whose default there is 1e-7.
        **options: As for `torch.optim.Adam`.
    """

    def __init__(self, params: Iterable[Any], *, eps: float = 1e-7, **options: Any) -> None:  # noqa: ANN401
        super().__init__(params, eps=eps, **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, with the eps that makes it Keras's.

        Args:
            closure: As for `torch.optim.Adam`.

        Returns:
            The loss that the closure returns, a number; None without a closure.
        """
        epsilons = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            group["eps"] /= (1 - group["betas"][1] ** self._next_step(group)) ** 0.5
        try:
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, epsilons, strict=True):
                group["eps"] = eps

    def _next_step(self, group: dict[str, Any]) -> int:
        """Ask Adam's own count, which a skipped step of mixed precision does not raise."""
        taken = (self.state[weight]["step"] for weight in group["params"] if "step" in self.state.get(weight, {}))
        return int(next(taken, 0)) + 1


def adam(
    network: nn.Module,
    *,
    lr: float = 1e-3,
    betas: Iterable[float] = (0.9, 0.999),
    eps: float = 1e-7,
    base_fan_in: int | None = None,
    keras_eps: bool = False,
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
        keras_eps: Add `eps` where Keras adds it, see `KerasAdam`.

    Returns:
        The optimizer, with the groups `base` and, if any layer is wide, `wide_<fan_in>`.
    """
    wide = [m for m in network.modules() if base_fan_in and _fan_in(m) > base_fan_in and m.weight.requires_grad]
    scaled = {id(m.weight) for m in wide}
    groups: list[dict[str, Any]] = [{"name": "base", "params": [p for p in _trainable(network) if id(p) not in scaled]}]
    for layer in wide:
        rate = lr * (base_fan_in or 0) / _fan_in(layer)
        groups.append({"name": f"wide_{_fan_in(layer)}", "params": [layer.weight], "lr": rate})
    first, second = betas
    optimizer = KerasAdam if keras_eps else Adam
    return optimizer(groups, lr=lr, betas=(first, second), eps=eps, fused=True)


def adamw(
    network: nn.Module,
    *,
    lr: float = 1e-3,
    encoder_lr: float = 1e-4,
    weight_decay: float = 0.05,
    betas: Iterable[float] = (0.9, 0.999),
) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) with a lower learning rate for a pretrained encoder.

    Args:
        network: Those of its parameters that are not frozen are optimised.
        lr: Learning rate of the head.
        encoder_lr: Learning rate of everything else.
        weight_decay: Share of a weight matrix that a step takes away, times the rate; biases and the scales of
            normalisations keep theirs.
        betas: Decay of the running means of gradient and squared gradient, each in [0, 1).

    Returns:
        The optimizer, with up to four groups: `head` and `encoder`, each with a part `_undecayed`.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            part = "head" if name.startswith("backbone.head.") else "encoder"
            groups.setdefault(part if weight.ndim > 1 else f"{part}_undecayed", []).append(weight)
    first, second = betas
    options = [
        {
            "name": name,
            "params": weights,
            "lr": lr if name.startswith("head") else encoder_lr,
            "weight_decay": 0.0 if name.endswith("_undecayed") else weight_decay,
        }
        for name, weights in groups.items()
    ]
    return AdamW(options, lr=lr, betas=(first, second), fused=True)


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]


def _fan_in(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else 0
