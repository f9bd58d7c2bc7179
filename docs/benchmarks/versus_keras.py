"""The notebook's job here and in Keras on TensorFlow, in turns, each in a process of its own.

python -m venv keras && keras/bin/pip install tensorflow scipy pillow
python docs/benchmarks/versus_keras.py --keras keras/bin/python
python docs/benchmarks/versus_keras.py --keras keras/bin/python --instructions AVX2     # as on an older processor
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from histo_pl.benchmark.limits import least_step
from histo_pl.benchmark.run import describe_machine, figure, prepare, start_worker
from histo_pl.benchmark.workers import BenchmarkWorker, alternate, table
from histo_pl.cli.command_line import prepare_process
from histo_pl.hardware import multiplies_bfloat16

PEER = Path(__file__).with_name("keras_peer.py")
KERAS = "Keras on TensorFlow, oneDNN"
PLAIN = "Keras on TensorFlow, no oneDNN"
MIXED = "Keras on TensorFlow, oneDNN, mixed_bfloat16"
KERASES = (KERAS, PLAIN, MIXED)
OURS, FAST = "here, float32", "here, fast_cpu"
KERAS_STEP, STEP = "training step in Keras", "training step"
INPUT, EPOCH = "input with the notebook's augmentation", "training epoch, input included"

# The names by which oneDNN, PyTorch and MKL are told to leave newer instructions out.
OLDER = {"AVX2": ("AVX2", "avx2", "AVX2"), "AVX-512": ("AVX512_CORE", "avx512", "AVX512")}

Setting = dict[str, str | int]
Figures = dict[str, list[float]]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras", required=True, metavar="PYTHON", help="a Python with tensorflow, scipy and pillow")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=500, help="of which four fifths train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("keras", "step", "input", "epoch"), help="one of the contests")
    parser.add_argument("--instructions", choices=tuple(OLDER), help="the newest to use, of those of the processor")
    options = parser.parse_args()
    if options.instructions:
        leave_newer_instructions(options.instructions)
    prepare_process()  # workers inherit what the programs have
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(folder, options.image_size, options.batch_size, options.tiles)
        bfloat16 = multiplies_bfloat16() and not options.instructions
        measure(setting, options.keras, options.rounds, options.only, bfloat16=bfloat16)


def leave_newer_instructions(newest: str) -> None:
    """Hold oneDNN, PyTorch and MKL, in this process's workers, to what an older processor has."""
    names = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
    os.environ.update(zip(names, OLDER[newest], strict=True))
    print(f"Held to the instructions of {newest}.")


def measure(setting: Setting, keras: str, rounds: int, only: str | None, *, bfloat16: bool) -> None:
    """Hold the contests, each between processes of its own: all together they would not fit the memory."""

    def peer(*, onednn: bool = True, policy: str = "float32") -> BenchmarkWorker:
        own = setting | {"onednn": onednn, "policy": policy}
        return BenchmarkWorker([keras, str(PEER), json.dumps(own)])

    kerases = {KERAS: peer, PLAIN: partial(peer, onednn=False)}
    kerases |= {MIXED: partial(peer, policy="mixed_bfloat16")} if bfloat16 else {}
    fast = partial(start_worker, setting if bfloat16 else setting | {"precision": "32-true"})
    steps = {
        KERAS: peer,
        OURS: partial(start_worker, setting, precision="32-true"),
        FAST: fast,
    }
    caches = {f"here, cache={one}": partial(start_worker, setting, cache=one) for one in ("none", "ram", "disk")}
    epochs = {KERAS: peer, FAST: partial(fast, cache="disk")}
    contests = {
        "keras": lambda: contest(KERAS_STEP, rounds, kerases, "step", steps=2),
        "step": lambda: contest(STEP, rounds, steps, "step", steps=2),
        "input": lambda: contest(INPUT, rounds, {KERAS: peer} | caches, "input", batches=4),
        "epoch": lambda: contest(EPOCH, rounds, epochs, "epoch"),
    }
    print(describe_machine(), flush=True)
    for name, hold in contests.items():
        if only in (None, name):
            hold()


@contextmanager
def together(start: Mapping[str, Callable[[], BenchmarkWorker]]) -> Iterator[dict[str, BenchmarkWorker]]:
    """Start workers, and end them."""
    with ExitStack() as running:
        yield {name: running.enter_context(worker()) for name, worker in start.items()}


def shares_of_limit(step: Figures, workers: Mapping[str, BenchmarkWorker]) -> str:
    """Tell how much of the time of a step, the median, the processor's arithmetic and memory need at least."""
    single, fast = (workers[name].ask("limits") for name in (OURS, FAST))
    lines = []
    for name, values in step.items():
        work = fast if name == FAST else single
        share = 1000 * least_step(work) / work["batch_size"] / statistics.median(values)
        lines.append(f"{name}: {share:.0%} at {work['flops'] / 1e9:.0f} billion operations a second")
    return f"Share of the limit, of {single['step_flops'] / 1e9:.0f} billion operations: {'; '.join(lines)}."


def contest(
    title: str, rounds: int, start: Mapping[str, Callable[[], BenchmarkWorker]], task: str, **options: int
) -> None:
    """Have workers do a task in turns, and print the table."""
    with together(start) as workers:
        versions = check_peers({name: one.ask("step", steps=1) for name, one in workers.items() if name in KERASES})
        found = alternate({name: figure(one, task, **options) for name, one in workers.items()}, rounds)
        print(f"\n{versions}\n\n{table(title, 'ms a tile', found)}", flush=True)
        if title == STEP:
            print(f"\n{shares_of_limit(found, workers)}", flush=True)


def check_peers(peers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return TensorFlow's version; refuse one that does not take oneDNN, or does not leave it, as it is told."""
    if any(answer["onednn"] != (name != PLAIN) for name, answer in peers.items()):
        raise SystemExit(f"TensorFlow does not use oneDNN as it is told: {peers}")
    return next(iter(peers.values()))["versions"]


if __name__ == "__main__":
    main()
