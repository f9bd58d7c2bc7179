"""Peak arithmetic and bandwidth of a device, and the arithmetic and traffic of a training step."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from histo_pl.models import build_network

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices that are multiplied
COPIED = {"cuda": 2**31, "cpu": 2**28}  # bytes
REPETITIONS = 10
WEIGHT_TRAFFIC = 28  # bytes: Adam reads a weight, its gradient and two means, and writes all but the gradient
WEIGHT_PASSES = 3  # beside that: read forward and backward, its gradient written
OUTPUT_PASSES = 5  # over a layer's output: written, read forward and backward; its gradient written and read


def limits(device: str, *, mixed: bool) -> dict[str, float]:
    """Measure a device.

    Args:
        device: `cpu` or `cuda`.
        mixed: Multiply bfloat16 numbers, otherwise float32.

    Returns:
        `flops`, additions and multiplications a second in a product of square matrices, and `bandwidth`, bytes a second
        read and written by a copy; the best of ten.
    """
    side = SIDE[device]
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16 if mixed else torch.float32)
    block = torch.zeros(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    return {
        "flops": 2 * side**3 / _least_seconds(lambda: left @ left),
        "bandwidth": 2 * block.numel() / _least_seconds(lambda: target.copy_(block)),
    }


def work_of(model_config: Mapping[str, Any], batch_size: int, *, mixed: bool) -> dict[str, float]:
    """Count the least arithmetic and traffic of a training step.

    Args:
        model_config: The arguments of `build_network`, with the image's size in pixels.
        batch_size: Tiles a step.
        mixed: Activations are bfloat16, otherwise float32.

    Returns:
        `batch_size`; `step_flops`, of all convolutions and matrix products, forward and backward, as PyTorch's
        `FlopCounterMode` counts them; and `step_bytes`: what the constants above say of each weight and each layer's
        output. What a cache or a fused layer saves of it is not counted, nor what conversions add.
    """
    elements: list[int] = []
    images = torch.zeros(
        (batch_size, 3, model_config["image_size"], model_config["image_size"]), dtype=torch.uint8, device="meta"
    )
    with torch.device("meta"):
        network = build_network(model_config)
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output: elements.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    width = 2 if mixed else 4
    weights = sum(weight.numel() for weight in network.parameters())
    return {
        "batch_size": batch_size,
        "step_flops": counter.get_total_flops(),
        "step_bytes": (WEIGHT_TRAFFIC + WEIGHT_PASSES * width) * weights + OUTPUT_PASSES * width * sum(elements),
    }


def least_step(found: Mapping[str, float]) -> float:
    """Return the seconds that a step takes at least: the longer of its arithmetic and its traffic.

    Args:
        found: The results of `limits` and `work_of`, together.
    """
    return max(found["step_flops"] / found["flops"], found["step_bytes"] / found["bandwidth"])


def wait_for_device() -> None:
    """Wait until a GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], times: int = 1) -> float:
    """Measure work on a GPU or a processor.

    Args:
        work: The work.
        times: How often it is done, without a pause.

    Returns:
        The seconds that each repetition takes.
    """
    wait_for_device()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait_for_device()
    return (time.perf_counter() - started) / times


def _least_seconds(work: Callable[[], object]) -> float:
    return min(seconds_of(work) for _ in range(REPETITIONS + 1))
