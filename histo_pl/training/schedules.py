"""Learning-rate schedules."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup_fraction: float = 0.1) -> LambdaLR:
    """Rise linearly to the optimizer's learning rate, then fall to 0 along half a cosine (Loshchilov and Hutter 2017).

    Args:
        optimizer: Each of its groups keeps its own rate as the greatest.
        total_steps: Steps of the whole training, at least 1.
        warmup_fraction: Share of them that rises, in [0, 1).

    Returns:
        The schedule, for a step after every step of the optimizer.
    """
    warmup = math.ceil(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return LambdaLR(optimizer, factor)
