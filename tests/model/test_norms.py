"""Batch and other norms: against torch's, over padding, in parts, alone, saved and averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import place
from torch import nn

from danlu.model.classic import Classic, ClassicConfig
from danlu.model.heads import build, read_config
from danlu.model.norms import BatchNorm, norm
from tolerances import COMPOSED, SIMPLE


def draw(kind, norm_kind, **others):
    torch.manual_seed(3)
    made = Classic(ClassicConfig(kind, 40, 2, 6, 6, norm=norm_kind, **others))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("shape", [(9, 4), (3, 4, 5, 2)])
def test_a_batch_norm_is_torchs(shape):
    ours = BatchNorm(4)
    theirs = nn.BatchNorm1d(4) if len(shape) == 2 else nn.BatchNorm2d(4)
    with torch.no_grad():
        for made in (ours, theirs):
            made.weight.copy_(torch.arange(4.0))
            made.bias.copy_(torch.arange(4.0) - 2)
    for _ in range(3):
        x = torch.randn(shape)
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_variance, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_single_value_is_normed_as_in_use_and_moves_nothing():
    made = BatchNorm(3)
    made(torch.randn(8, 3))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    x = torch.randn(1, 3)
    alone = made(x)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert torch.equal(alone, made.eval()(x))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_each_vector_is_normed_by_itself(kind):
    x = torch.randn(7, 5)
    found = norm(kind, 5, 1e-6)(x).detach().numpy()
    for row, normed in zip(x.double().numpy(), found, strict=True):
        away = row - row.mean() if kind == "layer" else row
        np.testing.assert_allclose(
            normed, away / np.sqrt((away**2).mean() + 1e-6), rtol=SIMPLE, atol=SIMPLE
        )


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_padding_is_no_part_of_a_batchs_mean(kind):
    """The same documents, with and without padding, in one row and in several."""
    ids = torch.randint(4, 40, (13,))
    together_position, together_document = place([(5, 4, 4)])
    spread_position, spread_document = place([(5,), (4,), (4,)])
    backbone = draw(kind, "batch")
    other = draw(kind, "batch")
    packed = backbone(ids[None], together_position, together_document)[0]
    laid = torch.full(spread_document.shape, 39)
    laid[spread_document >= 0] = ids
    padded = other(laid, spread_position, spread_document)[spread_document >= 0]
    torch.testing.assert_close(packed, padded, rtol=COMPOSED, atol=COMPOSED)
    for (name, one), two in zip(backbone.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=SIMPLE, atol=SIMPLE, msg=name)
        assert not torch.equal(one, BatchNorm(6).state_dict()[name.split(".")[-1]]), name


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("norm_kind", ["none", "batch", "layer", "rms"])
def test_an_answer_does_not_depend_on_what_it_is_computed_with(kind, norm_kind):
    backbone = draw(kind, norm_kind)
    position, document = place([(6, 3), (4,)])
    ids = torch.randint(4, 40, document.shape)
    for _ in range(3):
        backbone(ids, position, document)
    backbone.eval()
    together = backbone(ids, position, document)
    for number in range(3):
        own = ids[document == number][None]
        alone = backbone(own, torch.arange(own.shape[1])[None], torch.zeros_like(own))[0]
        torch.testing.assert_close(together[document == number], alone, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_in_training_a_batch_norm_looks_at_the_whole_batch_and_the_others_do_not(kind):
    position, document = place([(6, 3), (4,)])
    ids = torch.randint(4, 40, document.shape)
    changed = ids.clone()
    changed[1, :4] = ids[1, :4].flip(0) % 36 + 4
    for norm_kind in ("none", "batch", "layer", "rms"):
        backbone = draw(kind, norm_kind)
        first, second = (backbone(x, position, document)[0] for x in (ids, changed))
        assert torch.equal(first, second) is (norm_kind != "batch"), norm_kind


@pytest.mark.parametrize(("kind", "own"), [("cnn", "rms"), ("mlp", "none"), ("lstm", "none")])
def test_a_model_of_before_there_was_a_choice_is_read_as_it_was(kind, own):
    fields = {"kind": kind, "vocab_size": 40, "num_layers": 2, "dim": 6, "hidden_dim": 6}
    config = read_config(fields)
    assert config.norm == own
    named = {name for name, _ in build(config, "classify", 3).named_parameters()}
    assert any("norm" in name for name in named) is (kind == "cnn")
    assert read_config(config.to_dict()) == config


def test_a_norm_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match="norm must be one of none, batch"):
        ClassicConfig("cnn", 40, 1, 6, 6, norm="group")
