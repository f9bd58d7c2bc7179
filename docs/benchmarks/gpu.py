"""One GPU's figures for training steps, memory and encoders, as tables of Markdown.

python docs/benchmarks/gpu.py                     all parts, some five minutes on an H200; steps takes 40 GB on the GPU
python docs/benchmarks/gpu.py steps memory        some of them
python docs/benchmarks/gpu.py --try               tiny, on any machine: does it run?
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl.benchmark import alternate, table
from histo_pl.benchmark.limits import seconds_of
from histo_pl.benchmark.notebook import notebook_model_config
from histo_pl.benchmark.run import describe_machine, draw_tiles
from histo_pl.inference.files import find_images
from histo_pl.models import build_network
from histo_pl.training.freezing import freeze_all_but
from histo_pl.training.optimizers import adam, adamw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATED = 20 if DEVICE == "cuda" else 2
CONTEXT = 0.7  # GB of a GPU that CUDA itself takes
CARDS = (8, 16, 24)  # GB of common GPUs
LARGEST = 1024  # batch that is tried
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SMALL = 224  # pixels


@dataclass(frozen=True)
class Scale:
    """The extent of the measurements.

    Attributes:
        steps: Image sizes and batches whose training step is timed, each with its number of steps a round.
        rounds: Measurements of each, in turns.
        tiles: Tiles of an epoch, and of an encoder's training.
        side: Of these tiles in pixels.
        batch: Of the epochs.
        batches: Batches whose memory is measured.
        encoders: Architectures of timm, and their last parts.
    """

    steps: Sequence[tuple[int, int, int]] = ((512, 32, 10), (128, 256, 10))
    rounds: int = 5
    tiles: int = 2000
    side: int = 512
    batch: int = 32
    batches: Sequence[int] = (8, 16, 32, 64)
    encoders: Sequence[tuple[str, str]] = (("resnet50", "layer4"), ("vit_small_patch16_224", "blocks.11"))


TRIAL = Scale(
    steps=((32, 4, 1),),
    rounds=1,
    tiles=20,
    side=32,
    batch=4,
    batches=(2,),
    encoders=(("resnet18", "layer4"),),
)


@dataclass(frozen=True)
class Variant:
    """Settings of a training step; the defaults are those of `experiment=fast_gpu`.

    Attributes:
        mixed: Compute in bfloat16 where autocast does.
        channels_last: Keep an image's channels side by side in memory.
        benchmark: Let cuDNN try algorithms.
        deterministic: Take deterministic algorithms where there are some.
        tf32: Let convolutions round to TF32, as PyTorch does unless told otherwise.
        matmul: Precision of float32 products.
        optimizer: Options of `torch.optim.Adam`: how it goes over the weights.
        compile: Mode of torch.compile; None: eager.
    """

    mixed: bool = True
    channels_last: bool = True
    benchmark: bool = True
    deterministic: bool = False
    tf32: bool = True
    matmul: str = "high"
    optimizer: str = "fused"
    compile: str | None = None

    def apply(self) -> None:
        """Set what holds for the whole process."""
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = self.benchmark
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        torch.set_float32_matmul_precision(self.matmul)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network computes."""
        return torch.autocast(DEVICE, torch.bfloat16, enabled=self.mixed)


_PLAIN: dict[str, Any] = {"mixed": False, "channels_last": False, "benchmark": False}
VARIANTS = {
    "float32, as trainer=gpu: deterministic": Variant(**_PLAIN, deterministic=True, matmul="highest"),
    "float32, no TF32 at all": Variant(**_PLAIN, tf32=False, matmul="highest"),
    "float32, TF32 in convolutions": Variant(**_PLAIN, matmul="highest"),
    "float32, TF32": Variant(**_PLAIN),
    "bfloat16": Variant(channels_last=False, benchmark=False),
    "bfloat16, channels last": Variant(benchmark=False),
    "bfloat16, channels last, cuDNN's choice: fast_gpu": Variant(),
    "fast_gpu, Adam in a loop": Variant(optimizer="for-loop"),
    "fast_gpu, Adam for each": Variant(optimizer="foreach"),
    "fast_gpu, compiled": Variant(compile="default"),
    "fast_gpu, compiled, CUDA graphs": Variant(compile="reduce-overhead"),
}
ALL = "all layers"
MEASURED = {"float32": VARIANTS["float32, TF32"], "bfloat16, channels last": Variant()}


def make_step(
    model_config: Mapping[str, Any],
    image_size: int,
    batch: int,
    variant: Variant,
    trainable: str | Sequence[str] = "all",
) -> Callable[[], Tensor]:
    """Make a training step on one random batch, which returns the loss."""
    variant.apply()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network: Any = build_network(model_config).train()
        images = torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.randint(0, 2, (batch,)).float()
    for part in freeze_all_but(network.backbone, trainable):
        part.eval()
    if variant.channels_last:
        network.to(memory_format=torch.channels_last)
    if variant.compile:
        network.compile(mode=variant.compile)
    optimizer: Any = adam(network, base_fan_in=256) if model_config["name"] == "keras_cnn" else adamw(network)
    for group in optimizer.param_groups:
        group |= {"fused": variant.optimizer == "fused", "foreach": variant.optimizer == "foreach"}

    def step() -> Tensor:
        with variant.autocast():
            logits = network(images)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def steps(scale: Scale) -> Iterator[str]:
    """Time the notebook's training step in all variants, in turns."""
    for image_size, batch, times in scale.steps:
        measures, first = {}, {}
        for name, variant in VARIANTS.items():
            if DEVICE == "cpu" and variant.compile == "reduce-overhead":
                continue
            try:
                one = make_step(notebook_model_config(image_size), image_size, batch, variant)
                first[name] = seconds_of(one)
                seconds_of(one, 3)  # CUDA graphs are recorded in the second
            except Exception as error:  # a compiler that fails must not hide the other figures
                yield f"{name} failed: {str(error)[:500]}"
                continue
            measures[name] = partial(_step_milliseconds, variant, one, times)
        yield table(f"training step, {image_size}x{image_size}, batch {batch}", "ms", alternate(measures, scale.rounds))
        compiled = [f"{first[name]:.1f} s ({name})" for name in measures if VARIANTS[name].compile]
        yield f"The first step took {', '.join(compiled)}."
        measures.clear()
        release()


def _step_milliseconds(variant: Variant, step: Callable[[], object], times: int) -> float:
    variant.apply()
    return 1000 * seconds_of(step, times)


def release() -> None:
    """Give the device's memory back."""
    torch.compiler.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Recipe:
    """A training whose memory is measured.

    Attributes:
        name: For the table.
        model_config: The arguments of `build_network`.
        image_size: Side of the input in pixels.
        trainable: See `freeze_all_but`.
    """

    name: str
    model_config: Mapping[str, Any]
    image_size: int
    trainable: str | tuple[str, ...] = "all"


def timm_config(architecture: str) -> dict[str, Any]:
    """Return the arguments of `build_network` for an architecture of timm."""
    return {"name": "timm", "architecture": architecture, "arguments": {}, "stages": None, **IMAGENET}


def recipes(scale: Scale) -> Iterator[Recipe]:
    """List the notebook's training and each encoder's."""
    yield Recipe("KerasCNN", notebook_model_config(scale.side), scale.side)
    for architecture, last in scale.encoders:
        yield Recipe(f"{architecture}, {ALL}", timm_config(architecture), SMALL)
        yield Recipe(f"{architecture}, {last}", timm_config(architecture), SMALL, (f"encoder.{last}", "head"))


def memory(scale: Scale) -> Iterator[str]:
    """Measure the most memory that a training step takes, and the batches that fit smaller GPUs."""
    columns = [f"batch {batch}" for batch in scale.batches]
    lines = [f"| memory of a step, GB | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    fits = [f"| largest batch, a power of two | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---|---|---|---|"]
    for recipe, (name, variant) in product(recipes(scale), MEASURED.items()):
        peaks = [f"{peak(recipe, variant, batch):.2f}" for batch in scale.batches]
        lines.append(f"| {recipe.name}, {recipe.image_size} pixels, {name} | {' | '.join(peaks)} |")
    yield "\n".join(lines)
    for recipe, (name, variant) in product(recipes(scale), MEASURED.items()):
        if DEVICE == "cuda" and not recipe.name.endswith(ALL):
            largest = " | ".join(str(largest_batch(recipe, variant, card)) for card in CARDS)
            fits.append(f"| {recipe.name}, {recipe.image_size} pixels, {name} | {largest} |")
    if DEVICE == "cuda":
        yield "\n".join(fits)


def peak(recipe: Recipe, variant: Variant, batch: int) -> float:
    """Return the most gigabytes that are allocated in two steps."""
    release()
    _two_steps(recipe, variant, batch)
    return _peak()


def largest_batch(recipe: Recipe, variant: Variant, card: int) -> int:
    """Try batches of 8, 16, ... `LARGEST` in a smaller GPU's memory; return the largest that fits, 0 if none does."""
    release()
    installed = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((card - CONTEXT) * 1e9 / installed)
    fitting, batch = 0, 8
    with suppress(torch.OutOfMemoryError):
        while batch <= LARGEST:
            _two_steps(recipe, variant, batch)
            release()
            fitting, batch = batch, 2 * batch
    torch.cuda.set_per_process_memory_fraction(1.0)
    release()
    return fitting


def _two_steps(recipe: Recipe, variant: Variant, batch: int) -> None:
    step = make_step(recipe.model_config, recipe.image_size, batch, variant, recipe.trainable)
    seconds_of(step, 2)


def encoders(scale: Scale) -> Iterator[str]:
    """Time a linear probe and a fine-tuning of each encoder, random weights, beside bare loops on the device."""
    yield "| encoder | seconds | peak, GB | tiles a second | bare loop | share |\n|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        draw_tiles(Path(folder, "tiles"), SMALL, scale.tiles, max(8, scale.tiles // 10))
        _make_different(Path(folder, "tiles"))
        for architecture, last in scale.encoders:
            model: dict[str, Any] = {"architecture": architecture, "weights": None, "stages": None} | IMAGENET
            yield _probe(folder, architecture, model)
            for trainer in ("auto", "amp"):
                yield _finetune(folder, architecture, model, [f"encoder.{last}", "head"], trainer, scale)


def _make_different(root: Path) -> None:
    """Write a number behind each image's end: a store of features knows tiles by their bytes."""
    for number, file in enumerate(find_images(str(root))):
        file.write_bytes(file.read_bytes() + str(number).encode())


def _train(folder: str, recipe: str, **settings: Any) -> tuple[float, dict[str, Any]]:  # noqa: ANN401
    """Train as train.py does, in this process; return the seconds and the results."""
    from histo_pl.cli.api import train

    release()
    data = {"inspections": f"{folder}/inspections.sqlite", "image_size": SMALL}
    started = time.perf_counter()
    run_dir = tempfile.mkdtemp(dir=folder)
    results = train(f"{folder}/tiles", recipe, **{"data": data, "run_dir": run_dir} | settings)
    return time.perf_counter() - started, results


def _probe(folder: str, architecture: str, model: dict[str, Any]) -> str:
    store = {"store": {"folder": f"{folder}/embeddings"}}
    quiet = {"enable_progress_bar": False}
    seconds, results = _train(folder, "linear_probe", model=model, embeddings=store, trainer=quiet)
    found = results["embeddings"]
    rate = found["computed"] / found["seconds"]
    used = _peak()
    bare = _bare_rate(architecture, VARIANTS["float32, TF32 in convolutions"])
    mixed = _bare_rate(architecture, Variant(), 256)
    title = f"linear_probe, {architecture}: {found['computed']} views"
    of_bare = f"{rate:.0f} | {bare:.0f} ({mixed:.0f} in bfloat16, batch 256) | {rate / bare:.2f}"
    return f"| {title} | {seconds:.1f}, embedding {found['seconds']:.1f} | {used:.2f} | {of_bare} |"


def _peak() -> float:
    """Return the most gigabytes that were allocated since `release`."""
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else float("nan")


@torch.inference_mode()
def _bare_rate(architecture: str, variant: Variant, batch: int = 32) -> float:
    """Return the tiles a second of a network alone, forward, on batches that lie on the device."""
    variant.apply()
    network = build_network(timm_config(architecture)).eval().to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randint(0, 256, (batch, 3, SMALL, SMALL), dtype=torch.uint8, device=DEVICE)

    def answer() -> None:
        with variant.autocast():
            network(images)

    seconds_of(answer, 3)
    return batch / seconds_of(answer, REPEATED)


def _finetune(
    folder: str, architecture: str, model: dict[str, Any], trainable: list[str], trainer: str, scale: Scale
) -> str:
    """Compare three epochs with one: the difference is two epochs, without start and test."""
    settings: dict[str, Any] = {"model": model | {"trainable": trainable}}
    quiet = {"trainer": trainer, "trainer.enable_progress_bar": False}
    one, three = (_train(folder, "finetune", **settings | quiet | {"trainer.max_epochs": n})[0] for n in (1, 3))
    used, validated = _peak(), scale.tiles // 5
    rate = (scale.tiles - validated + validated / 3) / ((three - one) / 2)
    variant = Variant(benchmark=False) if trainer == "amp" else VARIANTS["float32, TF32 in convolutions"]
    step = make_step(timm_config(architecture), SMALL, scale.batch, variant, trainable)
    seconds_of(step, 3)
    bare = scale.batch / seconds_of(step, REPEATED)
    title = f"finetune trainer={trainer}, {architecture}: an epoch, a validated tile counted as a third"
    epoch = (three - one) / 2
    of_bare = f"{rate:.0f} | {bare:.0f} | {rate / bare:.2f}"
    return f"| {title} | {epoch:.2f}, start and end {one - epoch:.1f} | {used:.2f} | {of_bare} |"


PARTS: dict[str, Callable[[Scale], Iterator[str]]] = {
    "steps": steps,
    "memory": memory,
    "encoders": encoders,
}


def main() -> None:
    """Print each part's tables; several parts run in processes of their own, so that none finds another's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; none: all")
    parser.add_argument("--try", dest="trial", action="store_true", help="tiny, to see that it runs")
    options = parser.parse_args()
    names = options.parts or list(PARTS)
    unknown = set(names) - PARTS.keys()
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}. Expected some of {', '.join(PARTS)}")
    if len(names) == 1:
        print(f"\n## {names[0]}\n\n{describe_machine()}", flush=True)
        for text in PARTS[names[0]](TRIAL if options.trial else Scale()):
            print(text if text.startswith("| ") and "\n" not in text else f"\n{text}", flush=True)
        return
    for name in names:
        subprocess.run([sys.executable, __file__, name, *(["--try"] if options.trial else [])], check=False)


if __name__ == "__main__":
    main()
