"""A trained model as one graph: from bytes to calibrated probabilities, with nothing left to add but the resize."""

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.ensemble import FoldEnsemble, join_folds
from histo_pl.models.exported import FOLD_LOGITS, LOGIT, NOVELTY, PROBABILITY
from histo_pl.models.novelty import answer
from histo_pl.models.stain_normalization import MacenkoNormalizer
from histo_pl.probability import to_probability

LEAST_SHARE = 1e-7  # a threshold of 0 or 1 has no finite logit


class DeployedClassifier(nn.Module):
    """Preprocessing, network, temperature and novelty of a model in one graph.

    Args:
        model: The model, on the CPU.

    Raises:
        UserError: A part of the model cannot be exported.
    """

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        _refuse_what_cannot_be_exported(model)
        self.network = model.network
        self.novelty = model.novelty
        self.temperature = model.temperature
        ensemble = model.network if isinstance(model.network, FoldEnsemble) else None
        self.outputs = (
            *(PROBABILITY, LOGIT),
            *([NOVELTY] if model.tells_novelty else []),
            *([] if ensemble is None else [FOLD_LOGITS]),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answer a batch.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255].

        Returns:
            The outputs that `outputs` names, in that order: the calibrated probability in [0, 1] and its logit, of
            shape (B,); the novelty, (B,); the calibrated logits of each fold, float64 of shape (B, K).
        """
        if isinstance(self.network, FoldEnsemble):
            folds, novelty = self.network.answers_of_folds(images)
            logit, rest = join_folds(folds).float(), [folds.T]
        else:
            logit, novelty = answer(self.network, self.novelty, images)
            logit, rest = logit / self.temperature, []
        return (to_probability(logit), logit, *([] if novelty is None else [novelty]), *rest)


class TwoLogits(nn.Module):
    """The graph of a program that applies softmax and takes the larger of two probabilities, such as QuPath's.

    Args:
        model: The model, on the CPU.
    """

    offset: Tensor

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.classifier = DeployedClassifier(model)
        self.register_buffer("offset", logit_of(model.threshold))

    def forward(self, images: Tensor) -> Tensor:
        """Answer a batch.

        Args:
            images: float32 of shape (B, 3, S, S), RGB in [0, 1]: bytes divided by 255.

        Returns:
            Of shape (B, 2): 0 for benign, and the calibrated logit minus that of the threshold for malignant.
        """
        logit = self.classifier((images * 255).round().to(torch.uint8))[1] - self.offset
        return torch.stack((torch.zeros_like(logit), logit), 1)


def logit_of(share: float) -> Tensor:
    """Return the logit of a number in [0, 1], a scalar float32, finite for 0 and 1 too."""
    return torch.logit(torch.tensor(share, dtype=torch.float64), eps=LEAST_SHARE).float()


def _refuse_what_cannot_be_exported(model: TrainedModel) -> None:
    if any(isinstance(module, MacenkoNormalizer) for module in model.network.modules()):
        raise UserError(
            "Macenko's stain normalisation cannot be exported: ONNX has no eigenvectors. Expected a model trained with "
            "model.stain=null. Received: model.stain=macenko"
        )
