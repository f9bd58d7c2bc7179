"""Trainable and frozen layers."""

from collections.abc import Sequence

from torch import nn

from histo_pl.errors import UserError

ALL = "all"


def freeze_all_but(backbone: nn.Module, trainable: str | Sequence[str]) -> list[nn.Module]:
    """Keep gradients from every parameter that is not named.

    A frozen BatchNorm would still move its statistics, and a frozen Dropout still drop: these, too, must be kept in
    evaluation mode, so they are returned.

    Args:
        backbone: Its parameters' `requires_grad` is set.
        trainable: Names of its trainable parts, such as `head` or `[encoder.blocks.6, head]`; `all`: every part.

    Returns:
        The parts that must stay in evaluation mode: those with nothing in them that learns.

    Raises:
        UserError: There is no such part.
    """
    names = [trainable] if isinstance(trainable, str) else list(trainable)
    if names == [ALL]:
        return []
    parts = dict(backbone.named_modules())
    unknown = [name for name in names if name not in parts or not name]
    if unknown or not names:
        raise UserError(
            f"model.trainable names a part that the network does not have. Expected all, or some of "
            f"{', '.join(_near(backbone, unknown[0] if unknown else ''))}. "
            f"Received: {', '.join(map(str, unknown)) or 'nothing'}"
        )
    learning = {id(part) for name in names for part in parts[name].modules()}
    backbone.requires_grad_(False)
    for name in names:
        parts[name].requires_grad_(True)
    return [part for part in parts.values() if not any(id(inner) in learning for inner in part.modules())]


def _near(backbone: nn.Module, name: str) -> list[str]:
    """List the parts with weights beside those of a wrong name, and the backbone's own."""
    parts = {path: part for path, part in backbone.named_modules() if path and any(True for _ in part.parameters())}
    while name and name not in parts:
        name = name.rpartition(".")[0]
    inner = [path for path in parts if path.rpartition(".")[0] == name]
    return [path for path in parts if "." not in path] + [path for path in inner if "." in path]
