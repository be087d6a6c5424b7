"""Windows of series: laid out as a naive loop lays them, and nothing of a later split in them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.batch import PADDING
from danlu.data.series import cuts, read
from danlu.data.series_encoder import SeriesEncoder
from danlu.data.windows import CLIP, VALUE_ID, labels
from danlu.errors import DataError
from danlu.recipe.series import Series
from tolerances import SIMPLE


def table(sizes=(100, 85), seed=0, missing=0.1):
    generator = np.random.default_rng(seed)
    names = np.repeat([f"s{n}" for n in range(len(sizes))], sizes)
    hours = np.concatenate([np.arange(size) + 3 * n for n, size in enumerate(sizes)])
    time = np.datetime64("2024-02-28T00", "h") + hours
    x, y = generator.normal(5, 2, (2, len(names)))
    x[generator.random(len(x)) < missing] = math.nan
    return {
        "time": time.astype(str).tolist(), "id": names.tolist(), "x": x.tolist(),
        "y": (100 * y).tolist(), "holiday": generator.integers(0, 2, len(names)).tolist(),
        "state": generator.choice(["calm", "wild"], len(names)).tolist(),
    }  # fmt: skip


KEYS = {"series": "id", "variables": ("x", "y"), "target": "y", "covariates": ("holiday",),
        "frequency": "1h", "context": 8, "horizon": 5, "patch": 4}  # fmt: skip


def fitted(columns=None, **keys):
    section = Series(**{**KEYS, **keys})
    panel, _ = read(columns or table(), section, label="state")
    first, second = cuts(panel, 0.2, 0.25)
    return panel, SeriesEncoder.fit(panel, section, first), first, second


def naive_value(panel, encoder, series, steps, past, scale):
    """Go through one patch's steps; None is a step that does not exist."""
    row = []
    mean, deviation = scale
    for step in steps:
        cells = [math.nan] * 2 if step is None or not past else panel.values_LV[step]
        numbers = [(c - m) / d for c, m, d in zip(cells, mean, deviation, strict=True)]
        row += [0.0 if math.isnan(n) else min(max(n, -CLIP), CLIP) for n in numbers]
        row += [float(math.isnan(n)) for n in numbers]
        for place, name in enumerate(encoder.known):
            column = panel.known.index(name)
            if step is None or math.isnan(panel.known_LC[step, column]):
                row.append(0.0)
            else:
                gap = panel.known_LC[step, column] - encoder.known_mean[place]
                row.append(gap / encoder.known_deviation[place])
    return row


def naive_scale(panel, encoder, scale, series, steps):
    values = panel.values_LV
    training = values[panel.time_L < cuts(panel, 0.2, 0.25)[0]]
    own = panel.series_of[panel.time_L < cuts(panel, 0.2, 0.25)[0]] == series
    if scale == "window":
        used, least = values[steps], 0.01 * np.nanstd(training[own], axis=0)
        return np.nanmean(used, axis=0), np.maximum(np.nanstd(used, axis=0), least)
    used = training if scale == "global" else training[own]
    return np.nanmean(used, axis=0), np.nanstd(used, axis=0)


@pytest.mark.parametrize("scale", ["series", "global", "window"])
@pytest.mark.parametrize(("horizon", "patch"), [(5, 4), (8, 4), (0, 2), (1, 8)])
def test_windows_are_laid_as_a_naive_loop_lays_them(scale, horizon, patch):
    panel, encoder, first, _ = fitted(scale=scale, horizon=horizon, patch=patch)
    documents, counts = encoder.windows(panel, end=first)
    assert counts["windows"] == len(documents) > 10
    rows = np.array([7, 0, len(documents) - 1])
    batch = documents.lay(rows)
    expected, owner, position = [], [], []
    for number, row in enumerate(rows):
        start, series = documents.start[row], documents.series[row]
        context = list(range(start, start + 8))
        ahead = list(range(start + 8, start + 8 + horizon))
        ahead += [None] * (-horizon % patch)
        scales = naive_scale(panel, encoder, scale, series, context)
        pieces = [(context[i : i + patch], True) for i in range(0, 8, patch)]
        pieces += [(ahead[i : i + patch], False) for i in range(0, len(ahead), patch)]
        expected += [naive_value(panel, encoder, series, *piece, scales) for piece in pieces]
        owner += [number] * len(pieces)
        position += range(len(pieces))
    n = len(expected)
    np.testing.assert_allclose(batch.values_UK, expected, rtol=SIMPLE, atol=SIMPLE)
    assert batch.values_UK.shape[1] == encoder.spec.value_dims
    assert batch.slots_U.tolist() == list(range(n))
    # Each place in the window has an id of its own, and every id carries a value.
    assert batch.ids_BT[0, :n].tolist() == [VALUE_ID + place for place in position]
    assert encoder.spec.first_value_id == VALUE_ID
    assert encoder.spec.vocab_size == VALUE_ID + max(position) + 1
    assert batch.document_BT[0, :n].tolist() == owner
    assert (batch.document_BT[0, n:] == PADDING).all()
    assert batch.position_BT[0, :n].tolist() == position
    assert documents.sizes[rows].sum() == n


@pytest.mark.parametrize("scale", ["series", "global", "window"])
def test_scaled_targets_come_back_in_the_users_units(scale):
    panel, encoder, first, second = fitted(scale=scale)
    documents, _ = encoder.windows(panel, first, second)
    rows = np.arange(len(documents))
    plain = documents.targets(rows, scaled=False)
    for row in rows:
        origin = documents.start[row] + 8
        np.testing.assert_array_equal(plain[row], panel.values_LV[origin : origin + 5, 1])
        np.testing.assert_array_equal(documents.times(rows)[row], panel.time_L[origin : origin + 5])
    scaled = documents.targets(rows)
    assert abs(scaled).max() < 10 < abs(plain).max()
    np.testing.assert_allclose(documents.restore(rows, scaled), plain)
    both = np.stack([scaled, scaled + 1], axis=2)
    gap = np.diff(documents.restore(rows, both), axis=2)[..., 0]
    np.testing.assert_allclose(gap, documents.scales(rows)[1][:, [1]] * np.ones(5))


SPLITS = st.fixed_dictionaries(
    {
        "context": st.sampled_from([4, 8, 12]),
        "horizon": st.integers(0, 9),
        "patch": st.sampled_from([1, 2, 4]),
        "stride": st.integers(1, 7),
        "scale": st.sampled_from(["series", "global", "window"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(SPLITS, st.integers(0, 9), st.lists(st.integers(10, 70), min_size=1, max_size=3))
def test_no_window_reaches_into_a_later_split(keys, seed, sizes):
    columns = table(tuple(sizes), seed)
    section = Series(**{**KEYS, **keys})
    panel, _ = read(columns, section)
    first, second = cuts(panel, 0.2, 0.25)
    encoder = SeriesEncoder.fit(panel, section, first)
    edges = [-math.inf, first, second, math.inf]
    seen = []
    for begin, end in itertools.pairwise(edges):
        documents, _ = encoder.windows(panel, begin, end)
        for start, series in zip(documents.start, documents.series, strict=True):
            steps = np.arange(start, start + section.context + section.horizon)
            assert (panel.series_of[steps] == series).all()
            assert (panel.time_L[steps] < end).all()
            foretold = steps[section.context :] if section.horizon else steps
            assert (panel.time_L[foretold] >= begin).all()
        seen += [set(documents.start.tolist())]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[2]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["series", "global", "window"]), st.integers(0, 9))
def test_what_comes_later_changes_nothing_that_was_fitted_or_is_seen(scale, seed):
    columns = table(seed=seed)
    panel, encoder, first, _second = fitted(columns, scale=scale)
    late = panel.time_L >= first
    changed = {**columns}
    generator = np.random.default_rng(seed)
    time = {(panel.names[s], t) for s, t in zip(panel.series_of[late], panel.time_L[late], strict=True)}  # noqa: E501  # fmt: skip
    from danlu.data.clock import read_times

    times = read_times(columns["time"])[0]
    for row, key in enumerate(zip(columns["id"], times, strict=True)):
        if key in time:
            for name in ("x", "y", "holiday"):
                changed[name] = list(changed[name])
                changed[name][row] = float(generator.normal(0, 1e4))
    other_panel, other, *_ = fitted(changed, scale=scale)
    for name in ("mean", "deviation", "known_mean", "known_deviation"):
        np.testing.assert_array_equal(getattr(encoder, name), getattr(other, name))
    mine, theirs = (e.windows(p, end=first)[0] for e, p in ((encoder, panel), (other, other_panel)))
    rows = np.arange(len(mine))
    assert (mine.lay(rows).values_UK == theirs.lay(rows).values_UK).all()
    np.testing.assert_array_equal(mine.targets(rows), theirs.targets(rows))


def test_every_window_of_a_whole_series_is_found_once_and_the_rest_is_counted():
    columns = {"time": [*range(30), 0, 1, 2], "id": ["a"] * 30 + ["b"] * 3, "x": [1.0] * 33}
    columns["x"][10:25] = [math.nan] * 15
    section = Series(series="id", variables=("x",), context=4, patch=2, horizon=3, stride=2)
    panel, _ = read(columns, section)
    documents, counts = SeriesEncoder.fit(panel, section).windows(panel)
    kept = [
        start
        for start in range(0, 30 - 7 + 1, 2)
        if not np.isnan(columns["x"][start : start + 4]).all()
        and not np.isnan(columns["x"][start + 4 : start + 7]).all()
    ]
    assert documents.start.tolist() == kept
    assert counts == {"windows": len(kept), "short": 1, "empty": 12 - len(kept)}


def test_whole_series_of_unequal_length_are_a_document_each_with_one_label():
    columns = {
        "time": [*range(5), *range(8)], "id": ["a"] * 5 + ["b"] * 8, "x": [*range(13)],
        "kind": ["up"] * 5 + ["down"] * 8,
    }  # fmt: skip
    section = Series(series="id", variables=("x",), whole=True, horizon=0, patch=4)
    panel, _ = read(columns, section, label="kind")
    documents, _ = SeriesEncoder.fit(panel, section).windows(panel)
    assert documents.sizes.tolist() == [2, 2]
    assert documents.length.tolist() == [5, 8]
    assert labels(panel, documents).tolist() == ["up", "down"]
    missing = documents.lay(np.array([0])).values_UK.reshape(2, 4, -1)[..., 1]
    assert missing.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("days", "cycles"),
    [(1, []), (5, ["day"]), (40, ["day", "week"]), (800, ["day", "week", "year"])],
)
def test_a_cycle_that_training_does_not_see_twice_is_left_out(days, cycles):
    hours = np.datetime64("2020-01-01T00", "h") + np.arange(0, days * 24, 6)
    columns = {"time": hours.astype(str).tolist(), "x": np.sin(np.arange(len(hours))).tolist()}
    columns["shop"] = list(range(len(hours)))
    section = Series(covariates=("shop",), context=1, patch=1, horizon=1)
    panel, _ = read(columns, section)
    encoder = SeriesEncoder.fit(panel, section)
    expected = [f"{cycle} {part}" for cycle in cycles for part in ("sine", "cosine")]
    assert list(encoder.known) == ["shop", *expected]
    documents, _ = encoder.windows(panel)
    laid = documents.lay(np.array([1])).values_UK[0]
    assert len(laid) == encoder.spec.value_dims
    places = [panel.known.index(name) for name in expected]
    np.testing.assert_allclose(laid[3:], panel.known_LC[1, places], atol=SIMPLE)


def test_a_matrix_has_a_row_for_each_window_as_it_is_laid_by_itself():
    panel, encoder, first, _ = fitted()
    documents, _ = encoder.windows(panel, end=first)
    rows = np.array([3, 0, 11])
    found = documents.matrix(rows)
    for place, row in enumerate(rows):
        alone = documents.lay(np.array([row])).values_UK
        np.testing.assert_array_equal(found[place], alone.ravel())


def test_series_of_unequal_length_make_no_matrix():
    columns = {"time": [*range(5), *range(13)], "id": ["a"] * 5 + ["b"] * 13, "x": [*range(18)]}
    section = Series(series="id", variables=("x",), whole=True, horizon=0, patch=4)
    panel, _ = read(columns, section)
    documents, _ = SeriesEncoder.fit(panel, section).windows(panel)
    with pytest.raises(DataError, match="not equally long"):
        documents.matrix(np.arange(2))


def test_a_windows_label_is_that_of_its_last_step():
    panel, encoder, first, _ = fitted(horizon=0)
    documents, _ = encoder.windows(panel, end=first)
    assert labels(panel, documents).tolist() == [
        panel.label_L[start + 7] for start in documents.start
    ]
    with pytest.raises(DataError, match="no column of labels"):
        labels(read(table(), encoder.settings)[0], documents)


@pytest.mark.parametrize("scale", ["series", "global", "window"])
def test_a_question_reads_as_the_window_did_in_training(scale):
    columns = table(missing=0.0)
    panel, encoder, _, second = fitted(columns, scale=scale)
    documents, _ = encoder.windows(panel, second)
    rows = np.arange(0, len(documents), 7)
    records = []
    for row in rows:
        origin = documents.start[row] + 8
        of = range(documents.start[row], origin + 5)
        record = {name: [cells[step] for step in of] for name, cells in columns.items()}
        for name in ("x", "y"):
            record[name][8:] = [None] * 5
        records.append(record)
    asked = encoder.encode(records)
    laid, told = asked.lay(np.arange(len(rows))), documents.lay(rows)
    np.testing.assert_array_equal(laid.values_UK, told.values_UK)
    np.testing.assert_array_equal(laid.position_BT, told.position_BT)
    np.testing.assert_array_equal(asked.times(np.arange(len(rows))), documents.times(rows))
    for mine, theirs in zip(
        asked.scales(np.arange(len(rows))), documents.scales(rows), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_a_short_question_of_an_unknown_series_is_filled_up_with_missing_steps():
    _panel, encoder, *_ = fitted(scale="series")
    record = {"time": ["2030-01-01T00", "2030-01-01T01"], "id": ["new"] * 2, "x": [1, 2],
              "y": [3, 4], "holiday": [0, 0]}  # fmt: skip
    asked = encoder.encode([record])
    values = asked.lay(np.array([0])).values_UK.reshape(4, 4, -1)
    assert values[:2, :, 2].ravel().tolist() == [1] * 6 + [0] * 2
    np.testing.assert_array_equal(asked.mean[0], encoder.mean[-1])
    assert np.isnan(asked.targets(np.array([0]))).all()
    assert (asked.lay(np.array([0])).values_UK.reshape(4, 4, -1)[2, 0, 5:7] != 0).any()


@pytest.mark.parametrize(
    ("ids", "y", "told"),
    [(["a", "b"], [1, 2], "several series"), (["a", "a"], ["", None], "no measurement")],
)
def test_a_question_that_cannot_be_answered_says_why(ids, y, told):
    _, encoder, *_ = fitted()
    record = {"time": ["2030-01-01T00", "2030-01-01T01"], "id": ids, "x": [1, 2], "y": y,
              "holiday": [0, 0]}  # fmt: skip
    with pytest.raises(DataError, match=told):
        encoder.encode([record])


def test_noise_comes_from_the_generator_alone_and_leaves_masks_and_covariates():
    panel, encoder, first, _ = fitted(jitter=0.3)
    documents, _ = encoder.windows(panel, end=first)
    rows = np.arange(20)
    plain, one, same, other = (
        documents.lay(rows, g).values_UK.reshape(20 * 4, 4, -1)
        for g in (None, *map(np.random.default_rng, (1, 1, 2)))
    )
    assert (one == same).all()
    assert (one != other).any()
    assert (one[..., 2:] == plain[..., 2:]).all()
    there = plain[..., :2][plain[..., 2:4] == 0]
    noise = one[..., :2][plain[..., 2:4] == 0] - there
    assert noise.std() == pytest.approx(0.3, rel=0.15)
    assert (one[..., :2][plain[..., 2:4] == 1] == 0).all()


def test_extremes_are_clipped_for_the_model_and_counted_but_not_in_targets():
    columns = {"time": range(40), "x": [0.0, 1.0] * 20}
    columns["x"][30] = 1e6
    section = Series(context=4, patch=2, horizon=2, scale="series", stride=4)
    panel, _ = read(columns, section)
    documents, _ = SeriesEncoder.fit(panel, section, 20).windows(panel)
    rows = np.arange(len(documents))
    assert documents.lay(rows).values_UK.max() == CLIP
    assert documents.count()["clipped"] == 1
    assert documents.targets(rows, scaled=False).max() < 1e6  # it is never foretold here
    columns["x"][28:30] = [1e6, 1e6]
    panel, _ = read(columns, section)
    documents, _ = SeriesEncoder.fit(panel, section, 20).windows(panel)
    assert documents.targets(rows).max() > 1e5


def test_a_flat_window_is_scaled_with_a_share_of_trainings_deviation():
    columns = {"time": range(40), "x": [0.0, 2.0] * 10 + [7.0] * 20}
    section = Series(context=4, patch=2, horizon=2, scale="window")
    panel, _ = read(columns, section)
    documents, _ = SeriesEncoder.fit(panel, section, 20).windows(panel, 24)
    mean, deviation = documents.scales(np.array([5]))
    assert (mean[0, 0], deviation[0, 0]) == (7, 0.01)


def test_a_variable_without_training_data_is_refused():
    columns = {"time": range(10), "x": [None] * 5 + [1] * 5, "y": [1] * 10}
    panel, _ = read(columns, section := Series(variables=("x", "y")))
    with pytest.raises(DataError, match="'x' was never measured"):
        SeriesEncoder.fit(panel, section, 5)


@pytest.mark.parametrize(
    ("keys", "told"),
    [({"context": 10, "patch": 4}, "multiple"), ({"whole": True}, "nothing to foretell"),
     ({"quantiles": (0.9, 0.5)}, "ascend"), ({"quantiles": (0.1, 0.9)}, "0.5"),
     ({"start": "2020-01-01"}, "frequency"), ({"frequency": "often"}, "pattern"),
     ({"windows": 3}, "Extra")],
)  # fmt: skip
def test_a_section_that_cannot_be_meant_is_refused(keys, told):
    with pytest.raises(ValidationError, match=told):
        Series(**keys)
