"""`recipes/lstm-text.toml` beside an equal model written in the manner of Keras.

The reference is a plain loop: embeddings, an LSTM, its last output, a dense layer; texts
padded in front to 500 tokens; Adam at 1e-3, batches of 32; training ends when three epochs
bring no lower validation loss, and the best weights are kept. It is given the very tokens
and splits of the recipe's run. ``make parity`` compares them at full size.
"""

from __future__ import annotations

import copy
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import danlu
from danlu.data.text import Documents
from danlu.evaluate.intervals import Bootstrap
from danlu.recipe import load
from danlu.stages import truth
from reviews import sample
from tolerances import SIMPLE

LENGTH, BATCH, RATE, PATIENCE = 500, 32, 1e-3, 3
SMALL = [
    "tokenizer.vocab_size=1000", "model.width=32", "model.hidden=24", "finetune.epochs=4",
    "data.split.test=0.4", "evaluate.bootstrap=200", "gate.require=[]",
]  # fmt: skip


class KerasStyle(nn.Module):
    """Embedding → LSTM → last output → Dense with a sigmoid, drawn as Keras draws them."""

    def __init__(self, vocab_size: int, width: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, units, batch_first=True)
        self.dense = nn.Linear(units, 1)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        nn.init.xavier_uniform_(self.lstm.weight_ih_l0)
        nn.init.orthogonal_(self.lstm.weight_hh_l0)
        nn.init.xavier_uniform_(self.dense.weight)
        for bias in (self.lstm.bias_ih_l0, self.lstm.bias_hh_l0, self.dense.bias):
            nn.init.zeros_(bias)
        with torch.no_grad():
            self.lstm.bias_ih_l0[units : 2 * units] = 1.0  # of the forget gate

    def plainly(self, texts: list[Tensor]) -> Tensor:
        """Pad every text in front, and read all of it."""
        padded = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
        for row, text in zip(padded, texts, strict=True):
            row[LENGTH - len(text) :] = text
        _, (last, _) = self.lstm(self.embedding(padded))
        return self.dense(last[0])[:, 0]

    def forward(self, texts: list[Tensor]) -> Tensor:
        """Do the same in a tenth of the time: the padding is read once for all texts."""
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        states, read = [(torch.zeros(1, 1, self.lstm.hidden_size),) * 2], 0
        for number in order:
            more = LENGTH - len(texts[number]) - read
            state = states[-1]
            if more:
                pads = self.embedding(torch.zeros(1, more, dtype=torch.int64))
                _, state = self.lstm(pads, state)
            states.append(state)
            read += more
        begin = tuple(torch.cat(part, dim=1) for part in zip(*states[1:], strict=True))
        packed = nn.utils.rnn.pack_sequence([self.embedding(texts[n]) for n in order])
        _, (last, _) = self.lstm(packed, begin)
        return self.dense(last[0])[torch.tensor(order).argsort(), 0]


def batches(texts: list[Tensor], order: list[int], size: int = BATCH):
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, [texts[row] for row in rows]


@torch.no_grad()
def answers(model: KerasStyle, texts: list[Tensor]) -> Tensor:
    """Return the logits of all texts; those of like length are read together."""
    found = torch.empty(len(texts))
    for rows, some in batches(texts, sorted(range(len(texts)), key=lambda n: len(texts[n])), 256):
        found[torch.tensor(rows)] = model(some)
    return found


def train_reference(texts, labels, vocab_size, width, units, epochs):
    """Return the probability's side that the reference takes for each test text."""
    torch.manual_seed(0)
    model = KerasStyle(vocab_size, width, units)
    optimizer = torch.optim.Adam(model.parameters(), RATE, eps=1e-7)
    cost = nn.BCEWithLogitsLoss()
    best, kept, stale = float("inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(epochs):
        for rows, some in batches(texts["train"], torch.randperm(len(texts["train"])).tolist()):
            optimizer.zero_grad()
            cost(model(some), labels["train"][rows]).backward()
            optimizer.step()
        loss = float(cost(answers(model, texts["validation"]), labels["validation"]))
        stale += 1
        if loss < best:
            best, kept, stale = loss, copy.deepcopy(model.state_dict()), 0
        if stale == PATIENCE:
            break
    model.load_state_dict(kept)
    return (answers(model, texts["test"]) > 0).numpy()


def compared(root, folder, overrides):
    """Run the recipe and the reference; return which test texts each gets right."""
    path = root / "recipes" / "lstm-text.toml"
    result = danlu.run(path, folder, overrides)
    recipe, _ = load(path, overrides)
    stage = {p.name.rsplit("-", 1)[0]: p for p in (result.folder / "stages").iterdir()}
    texts, labels = {}, {}
    for name in ("train", "validation", "test"):
        documents = Documents.load(stage["tokenizer"], name)
        texts[name] = [
            torch.from_numpy(documents[n].astype(np.int64)) for n in range(len(documents))
        ]
        labels[name] = torch.from_numpy(truth(recipe, stage["data"], name).astype(np.float32))
    model = recipe.model
    reference = train_reference(
        texts, labels, recipe.tokenizer.vocab_size, model.width, model.hidden,
        recipe.finetune.epochs,
    )  # fmt: skip
    said = pq.read_table(stage["evaluate"] / "predictions.parquet")["answer"].to_pylist()
    actual = labels["test"].numpy() == 1
    return (np.asarray(said).argmax(1) == 1) == actual, reference == actual


def test_the_reference_reads_padded_texts_as_keras_does():
    torch.manual_seed(0)
    model = KerasStyle(30, 6, 5)
    texts = [torch.randint(1, 30, (size,)) for size in (3, 500, 40, 3, 77)]
    found, wanted = model(texts), model.plainly(texts)
    torch.testing.assert_close(found, wanted, rtol=SIMPLE, atol=SIMPLE)
    weights = list(model.parameters())
    direction = torch.randn(5)
    for one, other in zip(
        torch.autograd.grad(found, weights, direction),
        torch.autograd.grad(wanted, weights, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=SIMPLE, atol=SIMPLE)


def test_the_recipe_asks_for_what_the_reference_does(root):
    recipe, _ = load(root / "recipes" / "lstm-text.toml")
    finetune, model = recipe.finetune, recipe.model
    assert (recipe.tokenizer.max_length, finetune.batch_size) == (LENGTH, BATCH)
    assert (finetune.optimizer, finetune.learning_rate) == ("adam", RATE)
    assert (finetune.patience, finetune.choose_by) == (PATIENCE, "loss")
    assert (model.width, model.hidden, model.depth, model.causal) == (256, 128, 1, True)


def difference(ours, theirs):
    """Return the difference of the accuracies with its paired 95% interval."""
    resamples, gap = Bootstrap(len(ours), 2000, 0), ours.astype(float) - theirs
    return gap.mean(), *resamples.interval(resamples.values(lambda rows: gap[rows].mean()))


def test_a_small_run_is_not_two_points_below_the_reference(root, tmp_path):
    ours, theirs = compared(root, tmp_path / "run", [*SMALL, *sample(tmp_path)])
    assert len(ours) > 1000
    assert min(ours.mean(), theirs.mean()) > 0.65
    assert difference(ours, theirs)[0] > -0.02


@pytest.mark.skipif("DANLU_PARITY" not in os.environ, reason="half an hour; see `make parity`")
def test_the_whole_run_is_not_two_points_below_the_reference(root, tmp_path):
    ours, theirs = compared(root, tmp_path / "run", [])
    gap, low, high = difference(ours, theirs)
    print(
        f"\nlstm-text {ours.mean():.4f}, reference {theirs.mean():.4f}, difference "
        f"{gap:+.4f} [{low:+.4f}, {high:+.4f}] on {len(ours)} test texts"
    )
    assert gap > -0.02
