"""The notebook's network, untrained: its speed is the same."""

from typing import Any

from histo_pl.images import RESIZE
from histo_pl.models import build_network
from histo_pl.models.checkpoint import TrainedModel


def untrained_model(image_size: int) -> TrainedModel:
    """Make the notebook's network as a checkpoint would give it, with its first weights.

    Args:
        image_size: Side of its input in pixels.
    """
    model_config = notebook_model_config(image_size)
    network = build_network(model_config).eval().requires_grad_(False)
    data = {"name": "benchmark", "synthetic": True, "negative_class": "benign", "positive_class": "malignant"}
    return TrainedModel(network, model_config, image_size, RESIZE, threshold=0.5, temperature=1.0, data=data)


def notebook_model_config(image_size: int) -> dict[str, Any]:
    """Return what `build_network` takes for an image size in pixels."""
    return {"name": "keras_cnn", "image_size": image_size}
