"""Measuring language models on unseen text, beside a unigram model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from danlu.batch import Batch
from danlu.evaluate.intervals import Bootstrap, bootstrap_name
from danlu.log import Metric


@torch.inference_mode()
def measure(
    model: nn.Module,
    batches: Sequence[Batch],
    train_ids: NDArray[np.int32],
    seen_bytes: NDArray[np.int64],
    text_N: NDArray[np.int64],
    name: str,
    objective: str,
    vocab_size: int,
    device: torch.device,
    resamples: int,
    seed: int,
) -> list[Metric]:
    """Return loss and accuracy (and, if causal, perplexity and bits per byte).

    Parameters
    ----------
    model : nn.Module
        On `device`.
    batches : sequence of Batch
        With targets; together they hold every document once.
    train_ids : NDArray of int32
        The training split's tokens, from which the unigram baseline counts.
    seen_bytes : NDArray of int64, shape (n,)
        Bytes of each document that its tokens hold: those cut off are not foretold.
    text_N : NDArray of int64, shape (n,)
        Text that each document is a piece of.
    name, objective : str
    vocab_size : int
    device : torch.device
    resamples, seed : int
        Of the bootstrap over texts: tokens of one text are not independent.

    Returns
    -------
    list of Metric
        The unigram model uses add-one smoothing.
    """
    model.eval()
    counts = np.bincount(train_ids, minlength=vocab_size) + 1.0
    unigram = -np.log(counts / counts.sum())
    n = int(text_N[-1]) + 1
    size = np.bincount(text_N, seen_bytes, minlength=n).astype(np.float64)
    sums = {"own": np.zeros(n), "unigram": np.zeros(n), "right": np.zeros(n), "count": np.zeros(n)}
    for batch in batches:
        assert batch.weight_BT is not None
        assert batch.target_BT is not None
        assert batch.row_N is not None
        scores = model(batch.to(device))
        position_M = scores.position_M.cpu()
        bears = batch.weight_BT.reshape(-1)[position_M] != 0
        position_M = position_M[bears]
        logits_MV = scores.logits().float().cpu()[bears]
        target_M = batch.target_BT.reshape(-1)[position_M]
        rows = text_N[batch.row_N[batch.document_BT.reshape(-1)[position_M]].numpy()]
        losses = F.cross_entropy(logits_MV, target_M, reduction="none").double().numpy()
        np.add.at(sums["own"], rows, losses)
        np.add.at(sums["unigram"], rows, unigram[target_M.numpy()])
        np.add.at(sums["right"], rows, (logits_MV.argmax(-1) == target_M).double().numpy())
        np.add.at(sums["count"], rows, 1.0)
    bootstrap = Bootstrap(n, resamples, seed)
    total = int(sums["count"].sum())
    rows_out = []

    def add(
        who: str,
        metric: str,
        part: NDArray[np.float64],
        whole: NDArray[np.float64],
        unit: str,
        power: bool = False,
    ) -> None:
        def value(rows: NDArray[np.int32] | slice) -> float:
            ratio = float(part[rows].sum() / max(1e-12, whole[rows].sum()))
            return float(np.exp(ratio)) if power else ratio

        low, high = bootstrap.interval(bootstrap.values(value))
        how = f"{bootstrap_name(resamples)}, over texts" if low is not None else ""
        found = value(slice(None))
        rows_out.append(Metric("evaluate", who, "test", metric, found, low, high, total, unit, how))

    kind = "masked" if objective == "masked" else "next"
    for who, part in ((name, sums["own"]), ("unigram", sums["unigram"])):
        add(who, "loss", part, sums["count"], "nats/token")
        if objective == "causal":
            add(who, "perplexity", part, sums["count"], "1/probability", power=True)
            add(who, "bits_per_byte", part / np.log(2), size, "bits/byte")
    add(name, f"{kind}_token_accuracy", sums["right"], sums["count"], "share")
    add(name, "loss - unigram", sums["own"] - sums["unigram"], sums["count"], "nats/token")
    return rows_out
