"""Batches of bytes to logits, and models on disk. Imports no Lightning."""

from histo_pl.models.keras_cnn import KerasCNN
from histo_pl.models.network import build_network

__all__ = ["KerasCNN", "build_network"]
