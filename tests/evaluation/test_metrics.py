"""The metrics against scikit-learn and torchmetrics, ties included."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sk
from torchmetrics.classification import BinaryCalibrationError

from histo_pl.evaluation.metrics import ECE_BINS, NAMES, measure

Peer = Callable[[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]], float]

PEERS: dict[str, Peer] = {
    "auroc": lambda y, p, called: sk.roc_auc_score(y, p),
    "average_precision": lambda y, p, called: sk.average_precision_score(y, p),
    "balanced_accuracy": lambda y, p, called: sk.balanced_accuracy_score(y, called),
    "accuracy": lambda y, p, called: sk.accuracy_score(y, called),
    "f1": lambda y, p, called: sk.f1_score(y, called),
    "sensitivity": lambda y, p, called: sk.recall_score(y, called),
    "specificity": lambda y, p, called: sk.recall_score(~y, ~called),
    "ppv": lambda y, p, called: sk.precision_score(y, called),
    "npv": lambda y, p, called: sk.precision_score(~y, ~called),
    "mcc": lambda y, p, called: sk.matthews_corrcoef(y, called),
    "brier": lambda y, p, called: sk.brier_score_loss(y, p),
    "log_loss": lambda y, p, called: sk.log_loss(y, p, labels=[False, True]),
}


def draw(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64], float]:
    """A few to a few hundred observations whose probabilities take few values, 0 and 1 among them."""
    generator = np.random.default_rng(seed)
    count, values = generator.integers(2, 300), generator.integers(2, 30)
    label = generator.random(count) < generator.uniform(0.05, 0.95)
    probability = np.clip(np.round((label * generator.random() + generator.random(count)) * values / 2) / values, 0, 1)
    return label, probability, float(generator.choice([0.5, generator.integers(0, values) / values]))


@pytest.mark.parametrize("seed", range(100))
def test_agrees_with_scikit_learn(seed: int) -> None:
    """The metrics are those of scikit-learn, but for undefined ones, which it warns of or sets to 0 by convention."""
    label, probability, threshold = draw(seed)
    called = probability > threshold
    found = measure(probability, label, threshold)
    for name, peer in PEERS.items():
        if undefined(name, label, called):
            assert math.isnan(found[name][0]), name
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert found[name][0] == pytest.approx(peer(label, probability, called), abs=1e-6), name


def undefined(name: str, label: NDArray[np.bool_], called: NDArray[np.bool_]) -> bool:
    missing = {
        "sensitivity": not label.any(),
        "average_precision": not label.any(),
        "specificity": label.all(),
        "ppv": not called.any(),
        "npv": called.all(),
        "f1": not (label | called).any(),
        "mcc": len(set(label)) < 2 or len(set(called)) < 2,
    }
    both = {"auroc", "balanced_accuracy"}
    return missing.get(name, name in both and len(set(label)) < 2)


def test_the_calibration_error_is_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    probability = generator.uniform(0, 0.999, 500)
    label = generator.random(500) < probability**2
    peer = BinaryCalibrationError(n_bins=ECE_BINS)(torch.tensor(probability), torch.tensor(label).long())
    assert measure(probability, label, 0.5)["ece"][0] == pytest.approx(float(peer), abs=1e-6)


def test_a_weight_of_two_counts_like_two_observations_and_none_like_no_observation() -> None:
    label, probability, threshold = draw(3)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(label)))
    weighted = measure(probability, label, threshold, weights.astype(float))
    for row, repeats in enumerate(weights):
        plain = measure(np.repeat(probability, repeats), np.repeat(label, repeats), threshold)
        for name in NAMES:
            assert weighted[name][row] == pytest.approx(plain[name][0], nan_ok=True), name


def test_no_observations_have_no_metrics() -> None:
    found = measure(np.empty(0), np.empty(0, bool), 0.5)
    assert list(found) and all(math.isnan(values[0]) for values in found.values())
