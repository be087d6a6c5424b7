"""CTC reading against torch's own loss, edit counts against a slow table."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import Batch
from danlu.errors import DataError
from danlu.evaluate.intervals import Bootstrap
from danlu.evaluate.transcribe import (
    EditCounts,
    baselines,
    character_errors,
    count_edits,
    ctc_greedy,
    heard,
    measure,
    word_errors,
)
from danlu.model.transcript import Heard

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def distance(said, heard):
    """Wagner & Fischer, 1974, as a plain table."""
    table = np.zeros((len(said) + 1, len(heard) + 1), int)
    table[:, 0], table[0] = np.arange(len(said) + 1), np.arange(len(heard) + 1)
    for i, j in itertools.product(range(1, len(said) + 1), range(1, len(heard) + 1)):
        change = table[i - 1, j - 1] + (said[i - 1] != heard[j - 1])
        table[i, j] = min(change, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return table[-1, -1]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=6))
@settings(deadline=None)
def test_edits_are_as_few_as_can_be_and_account_for_the_lengths(pairs):
    said, heard = [p[0] for p in pairs], [p[1] for p in pairs]
    counts = count_edits(said, heard)
    assert counts.errors.tolist() == [distance(*pair) for pair in pairs]
    assert counts.units.tolist() == [len(words) for words in said]
    longer = [len(b) - len(a) for a, b in pairs]
    assert (counts.insertions - counts.deletions).tolist() == longer


def test_each_kind_of_edit_has_its_column():
    said = ["a b c", "a b c", "a b c", "", "a b"]
    heard = ["a x c", "a c", "a b x c", "a", ""]
    counts = word_errors(said, heard)
    assert counts.substitutions.tolist() == [1, 0, 0, 0, 0]
    assert counts.deletions.tolist() == [0, 1, 0, 0, 2]
    assert counts.insertions.tolist() == [0, 0, 1, 1, 0]
    assert counts.rate() == pytest.approx(6 / 11)
    assert counts.rate(np.array([0, 0, 4])) == pytest.approx(4 / 8)
    assert np.isnan(counts.rate(np.array([3])))


def test_characters_are_counted_with_single_spaces():
    counts = character_errors(["我 们", "ab  cd "], ["我 门", " ab cd"])
    assert counts.errors.tolist() == [1, 0]
    assert counts.units.tolist() == [3, 5]


def test_counts_are_ready_for_the_bootstrap():
    generator = np.random.default_rng(0)
    units = generator.integers(3, 12, 200)
    wrong = generator.binomial(units, 0.2)
    counts = EditCounts(wrong, 0 * wrong, 0 * wrong, units)
    low, high = Bootstrap.interval(Bootstrap(200, 500, 1).values(counts.rate))
    assert low < counts.rate() < high
    assert 0.15 < low < high < 0.25


def test_an_answer_missing_is_refused():
    with pytest.raises(DataError, match="2 utterances, but 1 answers"):
        count_edits(["a", "b"], ["a"])


def collapsed(path, blank):
    return [label for label, _ in itertools.groupby(path) if label != blank]


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5), st.integers(0, 3)
)
@settings(deadline=None)
def test_repeats_become_one_and_blanks_none(paths, blank):
    longest = max(map(len, paths))
    scores = np.random.default_rng(0).uniform(0, 0.5, (len(paths), longest, 4))
    for row, path in enumerate(paths):
        scores[row, np.arange(len(path)), path] = 1.0
    lengths = np.array([len(path) for path in paths], np.int64)
    assert ctc_greedy(scores, lengths, blank) == [collapsed(path, blank) for path in paths]


def test_what_is_read_from_sure_frames_is_what_torchs_loss_finds_certain():
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(8, 15, 5)) * 40
    read = ctc_greedy(scores)
    loss = torch.nn.CTCLoss(reduction="none")
    logs = torch.from_numpy(scores).log_softmax(-1).transpose(0, 1)
    for row, labels in enumerate(read):
        length = torch.tensor([15]), torch.tensor([len(labels)])
        nats = loss(logs[:, row : row + 1], torch.tensor([labels]), *length)
        best = scores[row].argmax(-1)
        path = logs[np.arange(15), row, best].sum()
        assert float(nats) <= -float(path) + 1e-9  # its best path is one of its paths
    assert any(read)


def test_scores_that_cannot_be_read_are_refused():
    scores = np.zeros((2, 4, 3))
    for bad in (np.zeros((4, 3)), np.zeros((2, 4, 0))):
        with pytest.raises(DataError, match="cannot be read"):
            ctc_greedy(bad)
    with pytest.raises(DataError, match="with blank 3"):
        ctc_greedy(scores, blank=3)
    for lengths in ([5, 1], [-1, 1], [1]):
        with pytest.raises(DataError, match="lengths must be 2 numbers from 0 to 4"):
            ctc_greedy(scores, np.array(lengths))
    scores[1, 3] = np.nan
    with pytest.raises(DataError, match="not a number"):
        ctc_greedy(scores)
    assert ctc_greedy(scores, np.array([4, 3])) == [[], []]  # beyond the end it does not matter


SAID = ["ab c", "b", "cab a", "ab c"]
HEARD = {"one": ["ab c", "a", "cb aa", ""], "other": ["ab c"] * 4}


def test_the_figures_are_those_of_slow_counts():
    rows, resampled = measure(SAID, HEARD, bootstrap := Bootstrap(4, 300, 0))
    found = {(row.model, row.metric): row for row in rows}
    for model, texts in HEARD.items():
        letters = [distance(a, b) for a, b in zip(SAID, texts, strict=True)]
        words = [distance(a.split(), b.split()) for a, b in zip(SAID, texts, strict=True)]
        cer, wer = found[model, "cer"], found[model, "wer"]
        assert cer.value == sum(letters) / sum(map(len, SAID))
        assert wer.value == sum(words) / sum(len(text.split()) for text in SAID)
        assert found[model, "exact_match"].value == letters.count(0) / 4
        kinds = ("substitutions", "insertions", "deletions")
        assert sum(found[model, kind].value for kind in kinds) == pytest.approx(cer.value)
        slow = [sum(letters[n] for n in rows) / sum(len(SAID[n]) for n in rows)
                for rows in bootstrap.rows.tolist()]  # fmt: skip
        np.testing.assert_allclose(resampled[model]["cer"], slow)
        assert (cer.low, cer.high) == tuple(np.quantile(slow, [0.025, 0.975]))
        assert cer.n == 4


def test_the_baselines_say_what_is_commonest_and_what_is_nearest():
    generator = np.random.default_rng(3)
    features = {"train": generator.normal(size=(30, 4)), "test": generator.normal(size=(7, 4))}
    texts = {"train": [*"aabc" * 7, "b", "c"], "test": list("abcabca")}
    majority, nearest = baselines(features, texts)
    assert majority.answer.tolist() == ["a"] * 7
    gap = np.linalg.norm(features["test"][:, None] - features["train"], axis=-1)
    assert nearest.answer.tolist() == [texts["train"][n] for n in gap.argmin(1)]


def test_answers_come_back_in_the_order_of_the_data_set():
    class Recites(torch.nn.Module):
        """Hears in each clip its own row's number."""

        def forward(self, batch):
            return Heard(torch.eye(9)[batch.row_N][:, None], torch.ones_like(batch.row_N))

    def batch(*rows):
        position = torch.zeros(1, len(rows), dtype=torch.int64)
        return Batch(position, position, position, len(rows), row_N=torch.tensor(rows))

    found = heard(Recites(), [batch(3, 1), batch(2, 0, 4)], 5, torch.device("cpu"))
    assert found == [[], [1], [2], [3], [4]]
