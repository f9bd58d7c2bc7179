"""A checkpoint and image files to an opinion. Needs PyTorch, Pillow and NumPy alone, so that it starts fast."""

from histo_pl.inference.checkpoint import TrainedModel, find_checkpoint, load_model, save_model
from histo_pl.inference.predictor import Prediction, Predictor
from histo_pl.inference.run import predict

__all__ = ["Prediction", "Predictor", "TrainedModel", "find_checkpoint", "load_model", "predict", "save_model"]
