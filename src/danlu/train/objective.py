"""What a model is trained to make small: each loss a sum and a count.

Sums and counts, not means, so that a batch computed in parts, or by several
processes, has exactly the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.batch import Batch
from danlu.model.outlook import measurements


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss in two functions.

    Attributes
    ----------
    name : str
    unit : str
        Unit of the mean loss.
    total : callable of (outputs, batch) to Tensor of shape ()
        Sum of the loss over what is counted; outputs are whatever the model's head gives.
    count : callable of (batch) to float
        How much is counted.
    right : callable of (outputs, batch) to Tensor of shape (N,), optional
        Which documents are answered rightly, where that has a meaning.
    """

    name: str
    unit: str
    total: Callable[[Any, Batch], Tensor]
    count: Callable[[Batch], float]
    right: Callable[[Tensor, Batch], Tensor] | None = None


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "the batch lacks what this objective needs"
    return value


def tokens() -> Objective:
    """Cross-entropy over the vocabulary at the weighted positions, in nats a token."""

    def total(scores: Any, batch: Batch) -> Tensor:
        loss: Tensor = scores.loss(_given(batch.target_BT), _given(batch.weight_BT))
        return loss

    return Objective("tokens", "nats/token", total, lambda b: float(_given(b.weight_BT).sum()))


def filling() -> Objective:
    """Cross-entropy of hidden ids, and half the mean squared error of hidden values.

    In nats a position: half the squared error is, up to a constant, the negative logarithm
    of a normal density of variance 1, which is that of standardised values. The mean is over a
    value's own numbers, not over what fills a short one up.
    """

    def total(filled: Any, batch: Batch) -> Tensor:
        loss: Tensor = filled.scores.loss(_given(batch.target_BT), _given(batch.weight_BT))
        error_UK: Tensor = filled.values_UK - _given(batch.hidden_UK)
        error: Tensor = (error_UK.square().mean(-1) / filled.share_U).sum()
        return loss + 0.5 * error

    def count(batch: Batch) -> float:
        return float(_given(batch.weight_BT).sum()) + len(_given(batch.hidden_UK))

    return Objective("filling", "nats/position", total, count)


def classes(label_smoothing: float = 0.0, consistency: float = 0.0) -> Objective:
    """Cross-entropy over classes, in nats a document.

    A label is a class, or a share of each class (float32 of shape (N, C), as mixup makes it);
    of shares the largest counts as the right one.

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): share of the target spread evenly (Szegedy et al., 2016).
    consistency : float
        Weight of the symmetric Kullback–Leibler divergence between the two views
        of each document, which are the two halves of a batch (R-Drop: Liang et
        al., 2021); 0 for batches of single views.
    """

    def total(logits_NC: Tensor, batch: Batch) -> Tensor:
        loss = F.cross_entropy(
            logits_NC, _given(batch.label), reduction="sum", label_smoothing=label_smoothing
        )
        if consistency:
            first, second = logits_NC.log_softmax(-1).chunk(2)
            apart = ((first.exp() - second.exp()) * (first - second)).sum()
            loss = loss + consistency * apart  # KL both ways, for each of two views: its mean
        return loss

    def right(logits_NC: Tensor, batch: Batch) -> Tensor:
        label = _given(batch.label)
        return logits_NC.argmax(-1) == (label.argmax(-1) if label.ndim > 1 else label)

    return Objective("classes", "nats/document", total, lambda b: float(b.num_documents), right)


def hinge() -> Objective:
    """Hinge loss over classes: how far the right one falls short of leading each other by 1.

    Source: Weston & Watkins, "Multi-Class Support Vector Machines", 1998; averaged over
    the classes.
    """

    def total(logits_NC: Tensor, batch: Batch) -> Tensor:
        return F.multi_margin_loss(logits_NC, _given(batch.label), reduction="sum")

    return Objective(
        "hinge", "margin/document", total, lambda b: float(b.num_documents), classes().right
    )


def several_labels() -> Objective:
    """Binary cross-entropy of each label by itself, in nats a label."""

    def total(logits_NC: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits_NC, _given(batch.label), reduction="sum")

    def right(logits_NC: Tensor, batch: Batch) -> Tensor:
        return ((logits_NC > 0) == (_given(batch.label) > 0.5)).all(-1)

    return Objective("labels", "nats/label", total, lambda b: float(_given(b.label).numel()), right)


_ERRORS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "squared": ("variance", F.mse_loss),
    "absolute": ("standard deviation", F.l1_loss),
    "huber": ("variance", F.huber_loss),
}


def error(kind: str = "squared") -> Objective:
    """Error of standardised values.

    Parameters
    ----------
    kind : {"squared", "absolute", "huber"}
        In units of the training variance; in its standard deviations; or half the square
        up to one standard deviation and linear beyond (Huber, 1964).
    """
    unit, function = _ERRORS[kind]

    def total(values_NC: Tensor, batch: Batch) -> Tensor:
        return function(values_NC, _given(batch.label), reduction="sum")

    return Objective(f"{kind} error", unit, total, lambda b: float(_given(b.label).numel()))


def pinball(levels: Sequence[float]) -> Objective:
    """Pinball loss of standardised values, in standard deviations: a mean over quantiles.

    Parameters
    ----------
    levels : sequence of float
        In (0, 1): the level of each output, the last axis of the answers.

    Notes
    -----
    Where the truth lies above the answer by d the loss is level × d, where it lies below by
    d, (1 − level) × d: least where as large a share of truths as the level lies below
    (Koenker & Bassett, "Regression Quantiles", 1978). Outputs may cross; see
    :func:`danlu.evaluate.predict.quantiles`. Answers are of shape (N, C), or (N, H, C) for H
    steps ahead; labels of shape (N, H), NaN where nothing was measured, which bears no loss.
    """
    level_C = torch.tensor(list(levels))

    def total(answers: Tensor, batch: Batch) -> Tensor:
        truth_NH = _given(batch.label)
        answer_NHC = answers.reshape(*truth_NH.shape, -1)
        there = ~truth_NH.isnan()
        above = truth_NH[there][:, None] - answer_NHC[there]
        level = level_C.to(above.device)
        return torch.maximum(level * above, (level - 1) * above).mean(-1).sum()

    def count(batch: Batch) -> float:
        return float((~_given(batch.label).isnan()).sum())

    return Objective("pinball", "standard deviation", total, count)


def rebuilding(patch: int, variables: int, kind: str = "absolute", trim: float = 0.0) -> Objective:
    """Error of rebuilt measurements, the mean over those of a window.

    Parameters
    ----------
    patch, variables : int
        See :func:`danlu.model.outlook.measurements`.
    kind : {"absolute", "squared", "huber"}
    trim : float
        In [0, 1): share of the windows of a batch, those of the largest error, that are left
        out. Least trimmed squares (Rousseeuw, 1984) in batches: the anomalies that are in the
        training period, too, must not be learnt. A batch in parts is trimmed part by part.
    """
    unit, function = _ERRORS[kind]

    def total(rebuilt_NWV: Tensor, batch: Batch) -> Tensor:
        truth, there = measurements(batch, patch, variables)
        error = function(rebuilt_NWV, truth, reduction="none") * there
        error_N = error.sum((1, 2)) / there.sum((1, 2)).clamp(min=1)
        return error_N.sort().values[: _kept(batch, trim)].sum()

    return Objective("rebuilding", unit, total, lambda b: float(_kept(b, trim)))


def transcripts() -> Objective:
    """Connectionist temporal classification, in nats a character.

    The loss is the negative logarithm of the probability of a transcript: the sum over all ways
    of spreading its characters over the positions, with blanks between and repeats as one
    (Graves et al., "Connectionist temporal classification", 2006). Outputs are
    :class:`danlu.model.transcript.Heard`; labels of shape (N, S), filled up with the blank, 0.
    A transcript that does not fit into its positions has no such way and an infinite loss;
    the data stage sets them aside.
    """

    def total(heard: Any, batch: Batch) -> Tensor:
        label_NS = _given(batch.label)
        log_LNC = heard.logits_NLC.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(
            log_LNC, label_NS, heard.length_N, (label_NS != 0).sum(1), blank=0, reduction="sum"
        )

    return Objective(
        "transcripts", "nats/character", total, lambda b: float((_given(b.label) != 0).sum())
    )


def _kept(batch: Batch, trim: float) -> int:
    return max(1, int((1 - trim) * batch.num_documents))


@torch.inference_mode()
def figures(
    model: nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Return the mean ``loss`` over batches, its ``n``, and perhaps the ``accuracy``."""
    model.eval()
    total = count = right = documents = 0.0
    for batch in batches:
        on_device = batch.to(device)
        outputs = model(on_device)
        total += float(objective.total(outputs, on_device))
        count += objective.count(batch)
        if objective.right is not None:
            right += float(objective.right(outputs, on_device).sum())
            documents += batch.num_documents
    found = {"loss": total / (count or 1.0), "n": count}
    return found | ({"accuracy": right / documents} if documents else {})
