"""The count of useful operations, against torch's own counter of matrix products."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from danlu.data.load import PackedLoader
from danlu.data.modality import Spec
from danlu.model import flops
from danlu.train import objective as objectives
from small import computing, made_up, model


def counted(chosen, total):
    """Return the operations of all matrix products but attention's, forward and backward."""
    with computing(with_kernels=False), FlopCounterMode(display=False) as counter:
        total().backward()
    found = counter.get_flop_counts()["Global"]
    return sum(count for op, count in found.items() if "attention" not in str(op))


def attended(config, sizes):
    pairs = sum(n * (n + 1) // 2 if config.causal else n * n for n in sizes)
    return 12 * pairs * config.num_layers * config.num_heads * config.head_dim


@pytest.mark.parametrize("tie", [True, False])
def test_a_causal_step_counts_what_torch_counts(tie):
    sizes = [33, 31]
    loader = PackedLoader(made_up(sizes, vocab_size=96), 1, 64, 1, 0, "causal", 0.15, Spec(96))
    [batch] = loader.load(0, 0)
    batch.weight_BT.fill_(1.0)  # every position bears loss, so that all logits are needed
    batch.target_BT.clamp_(0, 95)
    chosen = model("causal", tie_embeddings=tie)
    objective = objectives.tokens()
    found = counted(chosen, lambda: objective.total(chosen(batch), batch))
    assert flops.useful(chosen, batch) == found + attended(chosen.backbone.config, sizes)


def test_padding_counts_as_nothing():
    chosen = model("classify")
    documents = made_up([10, 7], vocab_size=96)
    rows = np.arange(2)
    flat = documents.lay(rows)  # 17 tokens in a row of 64
    alone = [documents.lay(rows[i : i + 1]) for i in rows]
    assert flops.useful(chosen, flat) == sum(flops.useful(chosen, one) for one in alone)


def test_a_recogniser_scores_every_position():
    chosen, sizes = model("transcribe"), [33, 31]
    batch = made_up(sizes, vocab_size=96).lay(np.arange(2))
    found = counted(chosen, lambda: chosen(batch).logits_NLC.sum())
    assert flops.useful(chosen, batch) == found + attended(chosen.backbone.config, sizes)
