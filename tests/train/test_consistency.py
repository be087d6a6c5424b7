"""Agreement between two views of each document (R-Drop), against scipy's divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from danlu.batch import Batch
from danlu.data.load import DocumentLoader
from danlu.data.modality import BEGIN_ID, MASK_ID, Spec
from danlu.data.text import Documents
from danlu.errors import RecipeError
from danlu.recipe import validate
from danlu.train import objective as objectives
from tolerances import SIMPLE


def batch_of(labels: torch.Tensor) -> Batch:
    ids = torch.zeros(len(labels), 1, dtype=torch.long)
    return Batch(ids, ids, torch.arange(len(labels))[:, None], len(labels), label=labels)


def test_it_adds_the_divergence_both_ways_of_each_pair():
    torch.manual_seed(0)
    logits = (2 * torch.randn(10, 3)).requires_grad_()
    batch = batch_of(torch.tensor([0, 1, 2, 1, 0] * 2))
    plain = objectives.classes(0.1).total(logits, batch)
    both = objectives.classes(0.1, consistency=0.7).total(logits, batch)
    chance = softmax(logits.detach().double().numpy(), axis=1)
    apart = sum(
        entropy(chance[i], chance[i + 5]) + entropy(chance[i + 5], chance[i]) for i in range(5)
    )
    assert float((both - plain).detach()) == pytest.approx(0.7 * apart, rel=SIMPLE, abs=SIMPLE)


def test_its_gradient_is_that_of_the_formula():
    torch.manual_seed(1)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    batch = batch_of(torch.tensor([0, 1, 2] * 2))
    objective = objectives.classes(0.0, consistency=1.3)
    assert torch.autograd.gradcheck(lambda x: objective.total(x, batch), logits)


def test_views_that_agree_cost_nothing():
    logits = torch.randn(3, 4).repeat(2, 1)
    batch = batch_of(torch.tensor([0, 1, 2] * 2))
    plain = objectives.classes().total(logits, batch)
    assert float(objectives.classes(0.0, 5.0).total(logits, batch) - plain) == pytest.approx(0)


def test_a_batch_holds_two_views_of_each_document_hidden_differently():
    generator = np.random.default_rng(0)
    documents = Documents.of([
        np.asarray([BEGIN_ID, *generator.integers(10, 90, 40)], np.int32) for _ in range(8)
    ])  # fmt: skip
    loader = DocumentLoader(
        documents, torch.arange(8), 4, 1, 0, Spec(90), mask_probability=0.3, views=2
    )
    assert loader.steps_per_epoch == 2
    for position in range(2):
        (batch,) = loader.load(0, position)
        assert batch.num_documents == 8
        assert torch.equal(batch.row_N[:4], batch.row_N[4:])
        assert torch.equal(batch.label, batch.row_N)
        first, second = (
            torch.cat([batch.ids_BT[batch.document_BT == number] for number in view])
            for view in (range(4), range(4, 8))
        )
        assert not torch.equal(first, second)
        same = (first != MASK_ID) & (second != MASK_ID)
        assert torch.equal(first[same], second[same])


def test_only_a_classifier_has_it():
    data = {"task": "regress", "label": "y", "sources": [{"path": "a.csv"}]}
    with pytest.raises(RecipeError, match=r"finetune\.consistency"):
        validate({"name": "x", "data": data, "finetune": {"consistency": 1.0}}, "test")
