"""A checkpoint and pixels to predictions. Needs PyTorch, Pillow and NumPy alone, so that it starts fast."""

from histo_pl.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
