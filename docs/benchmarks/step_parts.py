"""Profile a training step of the notebook's network on a processor: the time of each part, and what bounds it.

python docs/benchmarks/step_parts.py                              in the precision of fast_cpu
python docs/benchmarks/step_parts.py --precision 32-true          in float32
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable

from histo_pl.cli.command_line import prepare_process

WARMING, STEPS = 4, 5
CONVOLUTION, FIRST, DENSE, POOLING, ADAM, REST = (
    "second and third convolution",
    "first convolution, three channels",
    "the dense layer's products",
    "pooling and ReLU",
    "Adam",
    "all else",
)
PARTS = {
    "convolution": CONVOLUTION,
    "linear": DENSE,
    "addmm": DENSE,
    "aten::mm": DENSE,
    "pool": POOLING,
    "relu": POOLING,
    "threshold": POOLING,
    "adam": ADAM,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="default: what is fast here")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    prepare_process()  # before PyTorch is imported
    from histo_pl.benchmark.run import describe_machine

    print(describe_machine())
    print(f"\n{describe(options.precision, options.image_size, options.batch_size)}")


def describe(precision: str | None, size: int, batch: int) -> str:
    """Lay out the parts of a step, and what the processor does at most."""
    from histo_pl.benchmark.limits import limits, seconds_of
    from histo_pl.benchmark.tasks import Tasks
    from histo_pl.models.keras_cnn import KerasCNN

    tasks = Tasks("", "", size, batch, precision=precision)
    found = parts_of(lambda: tasks.step(1))
    lines = [f"| {tasks.precision}: a step of {sum(found.values()):.0f} ms | ms |", "|---|---|"]
    lines += [f"| {name} | {milliseconds:.1f} |" for name, milliseconds in found.items()]
    weight = KerasCNN(size).dense.weight.detach()
    read = 1000 * min(seconds_of(weight.sum) for _ in range(STEPS))
    most = limits("cpu", mixed=tasks.precision != "32-true")
    return "\n".join(lines) + (
        f"\n\nProducts run at {most['flops'] / 1e9:.0f} billion operations a second, a copy moves "
        f"{most['bandwidth'] / 1e9:.0f} GB a second, and adding up the dense layer's weights, "
        f"{4 * weight.numel() / 1e6:.0f} MB, takes {read:.0f} ms."
    )


def parts_of(step: Callable[[], object]) -> dict[str, float]:
    """Profile a step, and return the milliseconds of each part, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(WARMING):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(STEPS):
            step()
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages(group_by_input_shape=True):
        found[part_of(event.key, event.input_shapes)] += event.self_cpu_time_total / 1000 / STEPS
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def part_of(name: str, shapes: list[list[int]]) -> str:
    """Name the part of the step that an operation belongs to."""
    part = next((part for word, part in PARTS.items() if word in name.lower()), REST)
    is_first = part == CONVOLUTION and any(len(shape) == 4 and shape[1] == 3 for shape in shapes)  # noqa: PLR2004
    return FIRST if is_first else part


if __name__ == "__main__":
    main()
