"""Metrics of a binary classifier, always from probabilities."""

from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    BinaryRecall,
    BinarySpecificity,
    BinaryStatScores,
)

TRUSTED: dict[str, Any] = {"validate_args": False}  # a look at every batch's values makes a GPU wait


class BinaryBalancedAccuracy(BinaryStatScores):
    """The mean of sensitivity and specificity, which torchmetrics lacks for the binary case."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1]; NaN if a class has not been seen."""
        true_positive, false_positive, true_negative, false_negative = super().compute()[:4].float()
        sensitivity = true_positive / (true_positive + false_negative)
        specificity = true_negative / (true_negative + false_positive)
        return (sensitivity + specificity) / 2


def binary_metrics(threshold: float, **names: Any) -> MetricCollection:  # noqa: ANN401
    """Collect the metrics that every run reports.

    Args:
        threshold: A probability above it means malignant, in [0, 1].
        **names: `prefix` or `postfix` of the metrics' names.

    Returns:
        accuracy, balanced_accuracy, auroc, f1, sensitivity and specificity of probabilities (B,) in [0, 1]
        and labels (B,) of 0 and 1.
    """
    return MetricCollection(
        {
            "accuracy": BinaryAccuracy(threshold, **TRUSTED),
            "balanced_accuracy": BinaryBalancedAccuracy(threshold, **TRUSTED),
            "auroc": BinaryAUROC(**TRUSTED),
            "f1": BinaryF1Score(threshold, **TRUSTED),
            "sensitivity": BinaryRecall(threshold, **TRUSTED),
            "specificity": BinarySpecificity(threshold, **TRUSTED),
        },
        **names,
    )
