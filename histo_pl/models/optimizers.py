"""Optimisers that look at the whole network."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, AdamW


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
            What the closure returns.
        """
        own = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            group["eps"] /= (1 - group["betas"][1] ** self._next_step(group)) ** 0.5
        try:
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, own, strict=True):
                group["eps"] = eps

    def _next_step(self, group: dict[str, Any]) -> int:
        """Ask Adam's own count, which a skipped step of mixed precision does not raise."""
        taken = (self.state[weight]["step"] for weight in group["params"] if "step" in self.state.get(weight, {}))
        return int(next(taken, 0)) + 1


class PenalizedLBFGS(LBFGS):
    """L-BFGS with an L2 penalty: for a head on fixed features, whose loss has one minimum.

    It minimises the loss plus weight_decay / 2 times the sum of the squared weights; biases are free. With a loss that
    is a mean over N tiles, scikit-learn's logistic regression has C = 1 / (weight_decay * N).

    Args:
        params: As for `torch.optim.LBFGS`.
        weight_decay: Strength of the penalty, at least 0.
        **options: As for `torch.optim.LBFGS`.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, weight_decay: float = 0.0, **options: Any) -> None:  # noqa: ANN401
        super().__init__(params, **options)
        self.weight_decay = weight_decay

    def step(self, closure: Callable[[], Any]) -> Any:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take up to `max_iter` steps.

        Args:
            closure: Computes the loss and its gradients, on the same batch each time.

        Returns:
            The first penalised loss.
        """
        weights = [p for group in self.param_groups for p in group["params"] if p.ndim > 1]

        def penalized() -> Tensor:
            with torch.enable_grad():
                loss = closure()
            for weight in weights:
                weight.grad.add_(weight.detach(), alpha=self.weight_decay)
            return loss.detach() + self.weight_decay / 2 * sum(weight.detach().square().sum() for weight in weights)

        return super().step(penalized)


def lbfgs(network: nn.Module, *, weight_decay: float = 1.0, max_iter: int = 100) -> PenalizedLBFGS:
    """L-BFGS for a linear head on features that were computed before, all of them in one batch.

    Args:
        network: Those of its parameters that are not frozen are optimised.
        weight_decay: Strength of the L2 penalty, see `PenalizedLBFGS`.
        max_iter: Most steps an epoch.

    Returns:
        The optimiser.
    """
    return PenalizedLBFGS(
        _learning(network), weight_decay=weight_decay, max_iter=max_iter, line_search_fn="strong_wolfe"
    )


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
        keras_eps: Whether `eps` is added where Keras adds it, see `KerasAdam`.

    Returns:
        The optimiser, with the groups `base` and, if any layer is wide, `wide_<fan_in>`.
    """
    wide = [m for m in network.modules() if base_fan_in and _fan_in(m) > base_fan_in and m.weight.requires_grad]
    scaled = {id(m.weight) for m in wide}
    groups: list[dict[str, Any]] = [{"name": "base", "params": [p for p in _learning(network) if id(p) not in scaled]}]
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
    """AdamW (Loshchilov and Hutter 2019) with a slower rate for what was trained before.

    Args:
        network: Those of its parameters that are not frozen are optimised.
        lr: Learning rate of the head.
        encoder_lr: Learning rate of everything else.
        weight_decay: Share of a weight matrix that a step takes away, times the rate; biases and the scales of
            normalisations keep theirs.
        betas: Decay of the running means of gradient and squared gradient, each in [0, 1).

    Returns:
        The optimiser, with up to four groups: `head` and `encoder`, each with a part `_undecayed`.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            place = "head" if name.startswith("backbone.head.") else "encoder"
            groups.setdefault(place if weight.ndim > 1 else f"{place}_undecayed", []).append(weight)
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


def _learning(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]


def _fan_in(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else 0
