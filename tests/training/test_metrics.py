import numpy as np
import pytest
import torch
from sklearn import metrics as peer

from histo_pl.training.metrics import binary_metrics


@pytest.mark.parametrize("seed", range(10))
def test_metrics_agree_with_scikit_learn_over_batches_and_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    probabilities = np.round(rng.random(60), 1).astype(np.float32)
    threshold = 0.35
    metrics = binary_metrics(threshold, prefix="test/")
    for start in range(0, 60, 25):
        chunk = slice(start, start + 25)
        metrics.update(torch.from_numpy(probabilities[chunk]), torch.from_numpy(labels[chunk]))
    predicted = probabilities > threshold
    expected = {
        "test/accuracy": peer.accuracy_score(labels, predicted),
        "test/balanced_accuracy": peer.balanced_accuracy_score(labels, predicted),
        "test/auroc": peer.roc_auc_score(labels, probabilities),
        "test/f1": peer.f1_score(labels, predicted),
        "test/sensitivity": peer.recall_score(labels, predicted),
        "test/specificity": peer.recall_score(labels, predicted, pos_label=0),
    }
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, abs=1e-6)


def test_balanced_accuracy_of_one_class_is_not_a_number() -> None:
    metrics = binary_metrics(0.5)
    metrics.update(torch.tensor([0.2, 0.9]), torch.tensor([1, 1]))
    assert metrics["balanced_accuracy"].compute().isnan()
