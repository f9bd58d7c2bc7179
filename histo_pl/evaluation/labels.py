"""Labels of answers: Malignant, Benign, Uncertain."""

MALIGNANT, BENIGN, REFER = "Malignant", "Benign", "Uncertain: refer"


def label_of(probability: float, threshold: float, refer: tuple[float, float] | None) -> str:
    """Call a probability by its name.

    Args:
        probability: Of malignancy, in [0, 1].
        threshold: A probability above it means malignant.
        refer: A band, its ends included, in which there is no answer; None: no band.

    Returns:
        Malignant, Benign, or `Uncertain: refer`.
    """
    if refer is not None and refer[0] <= probability <= refer[1]:
        return REFER
    return MALIGNANT if probability > threshold else BENIGN
