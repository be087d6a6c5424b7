"""Hidden positions that carry values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danlu.data.hide import for_masked, hide
from danlu.data.modality import Grid, Spec

COLUMNS, NUMBERS, DIMS = 5, 3, 2
# Of each column a hidden form (4…8); of the last two columns two names (9…12); then numbers.
SPEC = Spec(16, DIMS, NUMBERS, shared=False,
            hidden=(0, 1, 2, 3, *range(4, 9), 7, 7, 8, 8, 4, 5, 6))  # fmt: skip


def batch(n=300, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.empty((n, COLUMNS), np.int32)
    ids[:, :NUMBERS] = np.arange(13, 16)
    ids[:, 3] = 9 + generator.integers(0, 2, n)
    ids[:, 4] = 11 + generator.integers(0, 2, n)
    values = generator.normal(size=(n, NUMBERS, DIMS)).astype(np.float32)
    return Grid(ids, values, SPEC.first_value_id).lay(np.arange(n))


def test_a_chosen_value_is_taken_away_and_kept_aside():
    plain = batch()
    found = for_masked(plain, 0.3, SPEC, np.random.default_rng(1))
    assert len(found.values_UK) + len(found.hidden_UK) == len(plain.values_UK)
    both = torch.cat([found.slots_U, found.hidden_slots_U]).argsort()
    assert torch.equal(torch.cat([found.values_UK, found.hidden_UK])[both], plain.values_UK)
    hidden = found.ids_BT.flatten()[found.hidden_slots_U]
    column = plain.ids_BT.flatten()[found.hidden_slots_U] - SPEC.first_value_id
    assert torch.equal(hidden, column + 4)  # it says which column is missing, and nothing else


def test_values_are_filled_in_and_ids_are_foretold():
    plain = batch()
    found = for_masked(plain, 0.3, SPEC, np.random.default_rng(1))
    valued = plain.ids_BT >= SPEC.first_value_id
    assert float(found.weight_BT[valued].sum()) == 0
    share = float(found.weight_BT.sum()) / (2 * 300)
    assert share == pytest.approx(0.3, abs=0.06)
    assert len(found.hidden_UK) / (NUMBERS * 300) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(found.target_BT, plain.ids_BT)


def test_hiding_takes_values_without_keeping_them():
    plain = batch()
    found = hide(plain, 0.4, SPEC, np.random.default_rng(1))
    assert found.hidden_UK is None
    gone = (found.ids_BT != plain.ids_BT).flatten()
    assert not gone[found.slots_U].any()
    assert len(found.slots_U) + int(gone[plain.slots_U].sum()) == len(plain.slots_U)


def test_the_same_seed_hides_the_same():
    one, other = (for_masked(batch(), 0.3, SPEC, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(one.ids_BT, other.ids_BT)
    assert torch.equal(one.hidden_UK, other.hidden_UK)
