"""The scale of pictures beside that of the training tiles."""

from histo_pl.models.checkpoint import TrainedModel

SAME_SCALE = 1.2  # ratio of two scales that pass for one: the augmentation zooms by as much


def describe_other_scale(model: TrainedModel, mpp: float | None) -> str | None:
    """Say that pictures have another scale than the training tiles.

    Args:
        model: A loaded model.
        mpp: The pictures' micrometres per pixel; None: unknown.

    Returns:
        A sentence; None where the scales are alike, or one of them is unknown.
    """
    if mpp is None or model.mpp is None or max(mpp / model.mpp, model.mpp / mpp) <= SAME_SCALE:
        return None
    return f"The tiles have {mpp:g} micrometres per pixel, those of the training {model.mpp:g}."
