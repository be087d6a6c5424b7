"""Tables: what is fitted, on what, and what the model sees of it."""

from __future__ import annotations

import datetime
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from danlu.data.modality import NUM_SPECIAL
from danlu.data.table import CLIP, TableEncoder, edges_of, tidy
from danlu.errors import DataError
from danlu.recipe.sections import Table

GENERATOR = np.random.default_rng(5)
CITIES = ["Beijing", "Shanghai", "Xi'an", "Kunming"]


def rows(n=200, seed=5):
    """Made-up rows: a number, a number that is often missing, a city, a date."""
    generator = np.random.default_rng(seed)
    found = []
    for row in range(n):
        day = datetime.date(2024, 1, 1) + datetime.timedelta(days=int(generator.integers(700)))
        found.append({
            "area": float(generator.normal(90, 20)),
            "price": None if row % 7 == 0 else str(generator.integers(1, 500)),
            "city": CITIES[int(generator.integers(len(CITIES)))],
            "sold": day.isoformat(),
        })  # fmt: skip
    return found


def fit(records=None, whole=False, **keys):
    return TableEncoder.fit(records or rows(), Table(**{"bins": 0} | keys), whole)


def column(encoder, name):
    return next(column for column in encoder.columns if column.name == name)


def test_kinds_are_told_from_the_cells():
    kinds = {c.name: c.kind for c in fit().columns}
    assert kinds == {
        "area": "number", "price": "number", "sold days": "number",
        "city": "category", "sold month": "category", "sold weekday": "category",
    }  # fmt: skip


def test_a_kind_that_is_given_is_taken():
    encoder = fit(categorical=["price"], min_count=1)
    assert column(encoder, "price").kind == "category"


def test_whole_rows_equal_scikit_learn():
    train, test = rows(), rows(50, seed=6)
    encoder = fit(train, whole=True, columns=["area", "city"])
    area = [[row["area"]] for row in train], [[row["area"]] for row in test]
    scaled = StandardScaler().fit(area[0]).transform(area[1])
    names = [list(column(encoder, "city").categories)]
    city = OneHotEncoder(categories=names, sparse_output=False)
    city = city.fit([[row["city"]] for row in train]).transform([[row["city"]] for row in test])
    np.testing.assert_allclose(encoder.matrix(test), np.hstack([scaled, city]), atol=1e-6)


def test_places_among_quantiles_equal_a_loop():
    encoder = fit(columns=["area"], bins=8)
    edges = column(encoder, "area").edges
    values = [20.0, *edges, 75.3, 260.0]
    got = column(encoder, "area").numbers(values)[:, 1:]
    for row, value in zip(got, values, strict=True):
        for place, (low, high) in enumerate(itertools.pairwise(edges)):
            expected = min(1.0, max(0.0, (value - low) / (high - low)))
            assert row[place] == pytest.approx(expected, abs=1e-6)
    assert len(edges) == 9
    np.testing.assert_allclose(
        edges, np.quantile([r["area"] for r in rows()], np.linspace(0, 1, 9))
    )


def test_a_column_is_a_position_whose_id_says_what_stands_there():
    train = rows()
    encoder = fit(train)
    grid = encoder.encode(train)
    assert grid.ids.shape == (len(train), len(encoder.columns))
    assert grid.ids.min() >= NUM_SPECIAL
    assert grid.ids.max() < encoder.spec.vocab_size
    for n, c in enumerate(encoder.columns):
        cells = [c.cell(row) for row in train]
        by_cell = {}
        for cell, id_ in zip(cells, grid.ids[:, n].tolist(), strict=True):
            key = "number" if c.kind == "number" and cell is not None else cell
            assert by_cell.setdefault(key, id_) == id_
        assert len(set(by_cell.values())) == len(by_cell)
        for other in range(n):
            assert not set(grid.ids[:, n]) & set(grid.ids[:, other])


def test_only_cells_with_a_number_carry_a_value_and_it_is_theirs():
    train = rows()
    encoder = fit(train)
    batch = encoder.encode(train).lay(np.array([7, 3]))  # row 7 has no price
    ids = batch.ids_BT.flatten()[batch.slots_U]
    assert (ids >= encoder.spec.first_value_id).all()
    assert len(ids) == 2 * encoder.num_numbers - 1
    area = column(encoder, "area")
    assert float(batch.values_UK[0, 0]) == pytest.approx(
        (train[7]["area"] - area.mean) / area.std, abs=1e-5
    )
    assert batch.position_BT.unique().tolist() == [0]
    assert batch.document_BT.flatten()[: 2 * len(encoder.columns)].tolist() == [0] * 6 + [1] * 6


def test_every_id_hides_as_its_column():
    train = rows()
    encoder = fit(train)
    ids = encoder.encode(train).ids
    hidden = encoder.spec.hide(ids.astype(np.int64))
    for n in range(ids.shape[1]):
        assert len(set(hidden[:, n])) == 1
    assert len(set(hidden[0])) == ids.shape[1]


def test_rare_unknown_missing_unreadable_and_extreme_cells_are_counted():
    train = [*rows(), *({**row, "city": "Lhasa"} for row in rows(2, seed=1))]
    encoder = fit(train)
    city = column(encoder, "city")
    assert "Lhasa" not in city.categories
    assert city.rare
    far = encoder.columns[0].mean + 2 * CLIP * encoder.columns[0].std
    odd = {"area": far, "price": "cheap", "city": "Mars", "sold": None}
    assert encoder.count([odd]) == {"missing": 3, "unreadable": 1, "unknown": 0, "clipped": 1}
    assert fit().count([odd])["unknown"] == 1
    assert encoder.encode([odd]).values.max() <= CLIP


def test_constant_columns_and_free_text_are_left_out_and_said():
    sentence = "the flat is close to the station, quiet, and number {} of its street"
    records = [{**row, "same": 1, "note": sentence.format(n)} for n, row in enumerate(rows())]
    encoder = fit(records)
    assert encoder.left_out == {"same": "the same in every training row", "note": "free text"}


def test_a_table_without_a_column_to_read_is_refused():
    with pytest.raises(DataError, match="no column is left"):
        fit([{"same": 1}] * 20)


def test_a_column_that_tells_by_being_missing_is_kept():
    records = [{"x": 1 if row % 3 else None} for row in range(30)]
    encoder = fit(records, whole=True)
    assert encoder.matrix(records)[:, -1].tolist() == [float(row % 3 == 0) for row in range(30)]


def test_whole_rows_have_the_width_that_the_model_is_told():
    encoder = fit(whole=True, bins=4)
    assert encoder.matrix(rows()).shape[1] == encoder.spec.value_dims


def test_trees_get_numbers_and_places_and_gaps():
    encoder = fit()
    cells, named = encoder.ordinal(rows())
    assert named == [c.kind == "category" for c in encoder.columns]
    price = [c.name for c in encoder.columns].index("price")
    assert np.isnan(cells[::7, price]).all()
    assert cells[1, price] == float(rows()[1]["price"])


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8)
)


def test_a_common_number_leaves_the_intervals_to_the_others():
    """Nine in ten have no capital gain; the others' gains must be told apart all the same."""
    gains = np.random.default_rng(1).lognormal(8, 1, 1000)
    value = np.concatenate([np.zeros(9000), gains])
    edges = edges_of(value, 16)
    assert edges[0] == 0
    held = np.histogram(gains, edges[1:])[0]
    assert len(held) == 15
    assert held.min() >= 1000 // 15 - 1
    assert held.max() <= 1000 // 15 + 2
    assert len(np.unique(np.quantile(value, np.linspace(0, 1, 17)))) < 4  # plain quantiles fail


@settings(max_examples=100, deadline=None)
@given(
    value=st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6), min_size=1, max_size=60),
    bins=st.integers(1, 20),
)
def test_borders_ascend_and_hold_every_number(value, bins):
    array = np.asarray(value, np.float64)
    edges = edges_of(array, bins)
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (array.min(), array.max())
    assert len(edges) <= bins + 1


@given(record=st.fixed_dictionaries(dict.fromkeys(("area", "price", "city", "sold"), CELLS)))
@settings(deadline=None, max_examples=150)
def test_any_record_can_be_read_and_gives_finite_numbers(record):
    record = json.loads(json.dumps({name: tidy(cell) for name, cell in record.items()}))
    for encoder in (_WHOLE, _BY_COLUMN):
        grid = encoder.encode([record])
        assert np.isfinite(grid.values).all()
        assert (grid.ids < encoder.spec.vocab_size).all()
        assert sum(encoder.count([record]).values()) <= len(encoder.columns)


_WHOLE, _BY_COLUMN = fit(whole=True, bins=4), fit(bins=4)


def test_tidy_keeps_what_json_can_hold():
    cells = [None, math.nan, " a ", "", True, 3, 2.5, datetime.date(2024, 2, 29)]
    assert [tidy(c) for c in cells] == [None, None, "a", None, "true", 3, 2.5, "2024-02-29"]
