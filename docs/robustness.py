"""What is left of a cross-validation's result when the test tiles come as from another laboratory.

    python docs/robustness.py multirun/DAY/TIME TILES [--every 2] [--external FOLDER]

Each fold's best.ckpt answers for its own test tiles, as they are and altered: stained anew, at another magnification,
by another scanner. With --external it also answers for a folder of tiles from elsewhere.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from histo_pl.data import HistologyDataModule
from histo_pl.data.transforms.geometric import RandomZoom
from histo_pl.data.transforms.stain import RandomStain
from histo_pl.inference import Predictor
from histo_pl.models.ensemble import load_model

LABORATORIES = 10
Shift = Callable[[Tensor], Tensor]  # uint8 (B, 3, S, S) to the same
Answers = tuple[NDArray[np.int64], NDArray[np.float64]]  # malignant or not, and the logit


def stains() -> dict[str, list[Shift]]:
    """Draw laboratories from the range of augment=stain: one stain for all tiles of each."""
    torch.manual_seed(0)
    stain = RandomStain()
    params = [stain.make_params([]) for _ in range(LABORATORIES)]
    return {"stain": [_each(lambda tile, own=own: stain.transform(tile, own)) for own in params]}


def magnifications() -> dict[str, list[Shift]]:
    """Show tiles smaller and larger; 2.0 lies beyond what augment=stain draws."""
    zoom = RandomZoom()
    factors = (0.6, 0.75, 1.4, 2.0)
    return {"magnification": [_each(lambda tile, own=own: zoom.transform(tile, {"factor": own})) for own in factors]}


def scanners() -> dict[str, list[Shift]]:
    """Change what no training here draws: gamma, white balance, sharpness, compression."""
    return {
        "gamma": [lambda images, own=own: F.adjust_gamma(images, own) for own in (0.7, 1.4)],
        "white balance": [_balance(0.85, 1.0, 1.1), _balance(1.1, 1.0, 0.85)],
        "blur": [lambda images: F.gaussian_blur(images, [9, 9], [1.5, 1.5])],
        "JPEG 40": [_each(_compress)],
    }


def _each(change: Shift) -> Shift:
    return lambda images: torch.stack([change(image) for image in images])


def _balance(*factors: float) -> Shift:
    scale = torch.tensor(factors).reshape(3, 1, 1)
    return lambda images: (images * scale).round().clamp(0, 255).to(torch.uint8)


def _compress(tile: Tensor) -> Tensor:
    stored = io.BytesIO()
    Image.fromarray(tile.permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=40)
    return torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1)


def ask(run: Path, root: Path, every: int, shifts: list[Shift], *, external: bool = False) -> list[Answers]:
    """Let a fold's model answer for its test tiles, or for every tile of an external folder, under each shift."""
    model = load_model(run / "best.ckpt")
    options = {"test_all": True} if external else {"split_file": run / "split.csv", "group_regex": "(.*)"}
    data = HistologyDataModule(root, image_size=model.image_size, resize=model.resize, num_workers=0, **options)
    data.setup()
    predictor = Predictor(model)
    answers: list[list[tuple[int, float]]] = [[] for _ in shifts]
    for batch in data.test_dataloader():
        images, labels = batch["image"][::every], batch["label"][::every].tolist()
        for number, shift in enumerate(shifts):
            logits = (predictor.logits(shift(images)) / model.temperature).tolist()
            answers[number] += zip(labels, logits, strict=True)
    return [(np.array([y for y, _ in own]), np.array([z for _, z in own])) for own in answers]


def summarize(answers: list[Answers]) -> tuple[float, float]:
    """Pool some models' answers: AUROC and balanced accuracy at a probability of 0.5."""
    truth, logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return float(roc_auc_score(truth, logits)), float(balanced_accuracy_score(truth, logits > 0))


def main() -> None:
    """Print one line a kind of shift: mean and worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a cross-validation's folder")
    parser.add_argument("root", type=Path, help="the tiles it was run on")
    parser.add_argument("--every", type=int, default=1, help="take every n-th tile")
    parser.add_argument("--external", type=Path, help="a folder of tiles from elsewhere")
    arguments = parser.parse_args()
    runs = sorted(path.parent for path in arguments.sweep.glob("*/best.ckpt"))
    kinds: dict[str, list[Shift]] = {"as they are": [lambda images: images]}
    kinds |= stains() | magnifications() | scanners()
    shifts = [shift for some in kinds.values() for shift in some]
    folds = [ask(run, arguments.root, arguments.every, shifts) for run in runs]
    results = iter([summarize(list(answers)) for answers in zip(*folds, strict=True)])
    print(f"{'test tiles':16}  AUROC mean worst   balanced accuracy mean worst")
    for kind, some in kinds.items():
        area, accuracy = np.array([next(results) for _ in some]).T
        print(f"{kind:16}  {area.mean():10.3f} {area.min():5.3f}   {accuracy.mean():22.3f} {accuracy.min():5.3f}")
    if arguments.external:
        own = [summarize(ask(run, arguments.external, 1, shifts[:1], external=True)) for run in runs]
        print(f"{arguments.external.name}, each fold's model: AUROC {[round(area, 3) for area, _ in own]}", end="")
        print(f" mean {np.mean([a for a, _ in own]):.3f}, balanced accuracy mean {np.mean([b for _, b in own]):.3f}")


if __name__ == "__main__":
    main()
