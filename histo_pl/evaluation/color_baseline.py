"""Baseline from colour alone: the result that a model must exceed to have learnt anything of tissue.

Laboratories stain differently, and patients come from laboratories: on BreakHis a logistic regression that sees nothing
but a tile's colours reaches most of what a network does.
"""

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.calibration import sigmoid

STEPS = 50
Array = NDArray[np.float64]


def colour_only(training: Array, malignant: NDArray[np.bool_], tested: Array) -> Array:
    """Learn malignancy from colours alone, by logistic regression with an L2 penalty (C = 1, as scikit-learn's).

    Args:
        training: Colours of shape (N, D).
        malignant: The truth, of shape (N,).
        tested: Colours of shape (M, D).

    Returns:
        Probabilities of malignancy, of shape (M,).
    """
    mean, deviation = training.mean(axis=0), training.std(axis=0) + 1e-9
    inputs, outputs = (np.c_[(colours - mean) / deviation, np.ones(len(colours))] for colours in (training, tested))
    penalty = np.r_[np.ones(inputs.shape[1] - 1), 1e-9]
    weights = np.zeros(inputs.shape[1])
    for _ in range(STEPS):  # Newton's, which needs about ten
        probability = sigmoid(inputs @ weights)
        gradient = inputs.T @ (probability - malignant) + penalty * weights
        hessian = inputs.T @ (inputs * (probability * (1 - probability))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:  # noqa: PLR2004
            break
    return sigmoid(outputs @ weights)
