"""How matrices are drawn: their moments, their angles, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from danlu.model.heads import build
from danlu.model.initialise import NORMAL_STD, matrices
from tolerances import SIMPLE

CONFIGS = {
    "transformer": BackboneConfig(50, 2, 128, 2, 1, 64, 192),
    "mlp": ClassicConfig("mlp", 8, 2, 128, 128, value_dims=96, value_ids=3, shared_values=False),
    "cnn": ClassicConfig("cnn", 50, 2, 128, 128),
    "cnn2d": ClassicConfig("cnn", 6, 2, 64, 64, norm="batch", value_dims=72, value_ids=1,
                           value_shape=(6, 6, 2)),
    "lstm": ClassicConfig("lstm", 50, 1, 128, 96),
    "gru": ClassicConfig("gru", 50, 1, 128, 96, causal=True),
}  # fmt: skip
GATES = {"lstm": 4, "gru": 3}


def made(kind, how, seed=0):
    torch.manual_seed(seed)
    return build(CONFIGS[kind], "classify", 3, initialiser=how)


def drawn(kind, how):
    """Every matrix, found by its name and shape rather than by the code under test."""
    found = []
    for name, parameter in made(kind, how).backbone.named_parameters():
        if parameter.ndim < 2 or name == "embedding.weight":
            continue
        value = parameter.detach().double()
        if name == "values.weight":
            found += [(name, each.T) for each in value]
        elif "cell.weight" in name:
            found += [(name, each) for each in value.chunk(GATES[kind])]
        else:
            found.append((name, value.flatten(1)))
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_he_glorot_and_normal_have_the_moments_of_their_papers(kind):
    for how in ("he", "glorot", "normal"):
        for (name, value), view in zip(
            drawn(kind, how), matrices(made(kind, how).backbone), strict=True
        ):
            area = view[0, 0].numel()  # pixels of a window
            num_in, num_out = value.shape[1], value.shape[0] * area
            variance = {
                "he": 2 / num_in, "glorot": 2 / (num_in + num_out), "normal": NORMAL_STD**2,
            }[how]  # fmt: skip
            # A sample variance's deviation: kurtosis 3 of the normal, 9/5 of the uniform.
            kurtosis = 1.8 if how == "glorot" else 3.0
            sampling = variance * np.sqrt((kurtosis - 1) / value.numel())
            assert abs(float(value.var()) - variance) < 4.5 * sampling, (how, name)
            assert abs(float(value.mean())) < 4.5 * np.sqrt(variance / value.numel()), (how, name)
            if how == "glorot":
                edge = np.sqrt(3 * variance)
                assert float(value.abs().max()) <= edge
                test = stats.kstest(value.flatten()[::3].numpy(), "uniform", (-edge, 2 * edge))
            else:
                scaled = value.flatten()[::3].numpy() / np.sqrt(variance)
                test = stats.kstest(scaled, "norm")
            assert test.pvalue > 1e-6, (how, name)  # of some 150 tests, with one seed


@pytest.mark.parametrize("kind", CONFIGS)
def test_orthogonal_matrices_have_rows_or_columns_at_right_angles(kind):
    found = drawn(kind, "orthogonal")
    assert found
    for name, value in found:
        shorter = value if value.shape[0] <= value.shape[1] else value.T
        product = shorter @ shorter.T
        torch.testing.assert_close(
            product, torch.eye(len(shorter), dtype=torch.float64), rtol=SIMPLE, atol=SIMPLE,
            msg=name,
        )  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_but_matrices_is_drawn_anew(kind):
    own, other = made(kind, "default"), made(kind, "orthogonal")
    for (name, one), two in zip(own.named_parameters(), other.parameters(), strict=True):
        is_matrix = one.ndim > 1 and "embedding" not in name and not name.startswith("head")
        assert torch.equal(one, two) is not is_matrix, name


def test_the_same_seed_draws_the_same():
    for (name, one), two in zip(
        made("lstm", "he").named_parameters(), made("lstm", "he").parameters(), strict=True
    ):
        assert torch.equal(one, two), name
