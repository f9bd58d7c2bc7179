"""A benign/malignant classifier for breast histology tiles (H&E).

The names below are the public Python API. They are imported at their first use, so that a prediction loads neither
Lightning nor Hydra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from histo_pl.audit.run import audit_tiles
    from histo_pl.cli.api import train
    from histo_pl.data import HistologyDataModule
    from histo_pl.errors import UserError
    from histo_pl.evaluation.recalibrate import recalibrate
    from histo_pl.evaluation.run import evaluate
    from histo_pl.evaluation.summarize import summarize
    from histo_pl.inference import Prediction, Predictor
    from histo_pl.interop.convert import convert
    from histo_pl.models.checkpoint import TrainedModel, save_model
    from histo_pl.models.ensemble import load_model
    from histo_pl.training.module import TileClassifier

__version__ = "0.1.0"
__all__ = [
    "HistologyDataModule",
    "Prediction",
    "Predictor",
    "TileClassifier",
    "TrainedModel",
    "UserError",
    "audit_tiles",
    "convert",
    "evaluate",
    "load_model",
    "recalibrate",
    "save_model",
    "summarize",
    "train",
]
_MODULES = {
    "HistologyDataModule": "data.datamodule",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "TileClassifier": "training.module",
    "TrainedModel": "models.checkpoint",
    "UserError": "errors",
    "audit_tiles": "audit.run",
    "convert": "interop.convert",
    "evaluate": "evaluation.run",
    "load_model": "models.ensemble",
    "recalibrate": "evaluation.recalibrate",
    "save_model": "models.checkpoint",
    "summarize": "evaluation.summarize",
    "train": "cli.api",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
