"""Stop a training at random moments, resume it, and compare the end with that of a run that was never stopped.

python docs/promises/resume.py [--stops 20] [--variants keras ddp_sim ...]
"""

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from common import TINY, Program, differences

VARIANTS = {
    "torchvision": ("trainer=cpu", "augment=torchvision"),
    "keras": ("trainer=cpu", "augment=keras"),
    "stain": ("trainer=cpu", "augment=stain"),
    "none": ("trainer=cpu", "augment=none"),
    "balanced": ("trainer=cpu", "data.balanced=true"),
    "cache=disk": ("trainer=cpu", "data.cache=disk"),
    "ddp_sim": ("trainer=ddp_sim",),
    "finetune": ("experiment=finetune", "trainer.max_epochs=6", "callbacks=early_stopping", "trainer.accelerator=cpu"),
    "linear_probe": ("experiment=linear_probe", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Print a row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=20, help="of each variant (default: 20)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    options = parser.parse_args()
    print(
        "| variant | identical | before the first checkpoint | in training | after the last epoch | not gone in 10 s |"
    )
    print("|---|---|---|---|---|---|")
    for name in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(name, options.stops, random.Random(options.seed), Path(folder)), flush=True)


def _row(name: str, stops: int, draw: random.Random, folder: Path) -> str:
    arguments = (*TINY, *VARIANTS[name])
    moments = _undisturbed(arguments, folder)
    phases = {"before": 0, "training": 0, "after": 0}
    identical, slow = 0, 0
    for number in range(stops):
        phase = ("training", "before", "training", "after", "training")[number % 5]
        low, high = moments[phase]
        stopped = Program("train.py", [*arguments, "run_dir=stopped"], folder)
        time.sleep(draw.uniform(low, high))
        if stopped.process.poll() is None:
            slow += stopped.stop(SIGNALS[number % 3]) > 10  # noqa: PLR2004  (seconds)
        phases[_phase(folder / "stopped", stopped)] += 1
        found = _resume(arguments, folder)
        identical += not found
        if found:
            print(f"  {name}, {SIGNALS[number % 3].name} in {phase}: {', '.join(found)}", flush=True)
        for run in ("stopped", "resumed"):
            shutil.rmtree(folder / run, ignore_errors=True)
    return (
        f"| {name} | {identical} of {stops} | {phases['before']} | {phases['training']} | {phases['after']} | {slow} |"
    )


def _undisturbed(arguments: tuple[str, ...], folder: Path) -> dict[str, tuple[float, float]]:
    """Train without a stop, and return from when to when (seconds) each phase lasted."""
    Program("train.py", [*arguments, "run_dir=first"], folder).process.wait()  # draws the tiles, fills the caches
    whole = Program("train.py", [*arguments, "run_dir=whole"], folder)
    whole.wait_for(folder / "whole" / "config.yaml")
    opened = time.monotonic() - whole.started
    whole.wait_for(folder / "whole" / "last.ckpt")
    first = time.monotonic() - whole.started
    if whole.process.wait() != 0:
        raise SystemExit(whole.output())
    ended = time.monotonic() - whole.started
    last = ended - (time.time() - (folder / "whole" / "last.ckpt").stat().st_mtime)
    return {
        "before": (min(1.0, opened), first),
        "training": (first, max(first + 0.2, last)),
        "after": (last, ended - 0.3),
    }


def _phase(run: Path, program: Program) -> str:
    if not (run / "last.ckpt").exists():
        return "before"
    if "are trained" in program.last_line() or (run / "predictions.csv").exists():
        return "after"
    return "training"


def _resume(arguments: tuple[str, ...], folder: Path) -> list[str]:
    """Go on with the stopped run, or start anew where it left no checkpoint, and compare the end."""
    last = folder / "stopped" / "last.ckpt"
    resume = [f"resume={last}"] if last.exists() else []
    resumed = Program("train.py", [*arguments, "run_dir=resumed", *resume], folder)
    if resumed.process.wait() != 0:
        return [resumed.last_line()]
    found = differences(folder / "whole", folder / "resumed")
    embeddings = json.loads((folder / "resumed" / "results.json").read_text(encoding="utf-8"))["embeddings"]
    if embeddings and embeddings["computed"]:
        found.append(f"{embeddings['computed']} features computed")
    return found


if __name__ == "__main__":
    main()
