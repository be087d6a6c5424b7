"""The smallest recipe, against data and a training loop written out by hand."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import danlu
from danlu.data.load import DocumentLoader
from danlu.data.table import TableEncoder
from danlu.log import read_events
from danlu.model import heads
from danlu.recipe import load
from danlu.stages import backbone_config, read_split

EPOCHS = 20


def made():
    """Return what stands in two-features.csv: two half-moons, 50 points each, seed 42."""
    generator = np.random.default_rng(42)
    angle = generator.uniform(0, np.pi, (2, 50))
    upper = np.stack([np.cos(angle[0]), np.sin(angle[0])], 1)
    lower = np.stack([1 - np.cos(angle[1]), 0.5 - np.sin(angle[1])], 1)
    points = np.vstack([upper, lower]) + generator.normal(0, 0.15, (100, 2))
    order = generator.permutation(100)
    classes = np.repeat(["upper", "lower"], 50)
    return [
        [f"{x:.4f}", f"{y:.4f}", c] for (x, y), c in zip(points[order], classes[order], strict=True)
    ]


def test_the_data_are_what_the_generator_makes(root):
    with (root / "recipes" / "data" / "two-features.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["x", "y", "moon"]
    assert rows == made()


def log_of(run):
    events = [e for e in read_events(run / "events.jsonl") if e["stage"] == "finetune"]
    losses = [e["loss"] for e in events if e["event"] == "step"]
    held_out = [(e["loss"], e["accuracy"]) for e in events if e["event"] == "validation"]
    return losses, held_out


@pytest.mark.parametrize(("optimizer", "sigmoid"), [("sgd", False), ("sgd", True), ("adam", False)])
def test_every_epoch_equals_a_loop_written_by_hand(root, tmp_path, optimizer, sigmoid):
    """Loss and accuracy of each epoch to 1e-6.

    The loop has a softmax of two outputs as the recipe's model has; or the classic network
    whose one output goes through a sigmoid. Both are the same function: the sigmoid of the
    difference of the two. By SGD they also learn alike, if the one output's rate is doubled,
    for each of the two moves by as much in opposite directions. (Adam divides rates out.)
    """
    path, rate = root / "recipes" / "two-features.toml", {"sgd": 0.2, "adam": 0.02}[optimizer]
    overrides = [
        f"finetune.optimizer={optimizer}", f"finetune.learning_rate={rate}",
        f"finetune.epochs={EPOCHS}", "gate.require=[]", "evaluate.bootstrap=100",
    ]  # fmt: skip
    run = danlu.run(path, tmp_path / "run", overrides=overrides).folder
    recipe, _ = load(path, overrides)
    losses, held_out = log_of(run)
    assert len(losses) == len(held_out) == EPOCHS

    tokens, data = (next((run / "stages").glob(f"{name}-*")) for name in ("tokenizer", "data"))
    encoder = TableEncoder.load(tokens)
    x, y = {}, {}
    for name in ("train", "validation"):
        table = read_split(data, name)
        x[name] = torch.from_numpy(
            encoder.matrix([json.loads(t) for t in table["text"].to_pylist()])
        )
        y[name] = torch.tensor([label == "upper" for label in table["label"].to_pylist()]).long()

    torch.manual_seed(recipe.seed)  # the same start
    start = heads.build(backbone_config(recipe, encoder.spec), "classify", 2)
    hand = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1 if sigmoid else 2))
    out = start.head.output
    with torch.no_grad():
        hand[0].weight.copy_(start.backbone.values.weight[0].T)
        hand[0].bias.copy_(start.backbone.embedding.weight[encoder.spec.first_value_id])
        weight, bias = out.weight, out.bias
        if sigmoid:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        hand[2].weight.copy_(weight)
        hand[2].bias.copy_(bias)

    def loss_of(which, rows):
        z, truth = hand(x[which][rows]), y[which][rows]
        if sigmoid:
            return F.binary_cross_entropy(torch.sigmoid(z[:, 0]), truth.float())
        return F.cross_entropy(z, truth)

    groups = [
        {"params": hand[0].parameters(), "lr": rate},
        {"params": hand[2].parameters(), "lr": 2 * rate if sigmoid else rate},
    ]
    if optimizer == "sgd":
        step = torch.optim.SGD(groups, lr=rate, momentum=recipe.finetune.momentum)
    else:
        step = torch.optim.Adam(groups, lr=rate, betas=recipe.finetune.betas)
    order = DocumentLoader(
        encoder.load_documents(tokens, "train"), y["train"], recipe.finetune.batch_size, 1,
        recipe.seed, encoder.spec,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        seen = []
        for position in range(order.steps_per_epoch):
            (batch,) = order.load(epoch, position)
            loss = loss_of("train", batch.row_N)
            step.zero_grad()
            loss.backward()
            step.step()
            seen.append(float(loss.detach()))
        assert losses[epoch] == pytest.approx(np.mean(seen), abs=1e-6)
        with torch.no_grad():
            every = torch.arange(len(y["validation"]))
            z = hand(x["validation"])
            said = z[:, 0] > 0 if sigmoid else z[:, 1] > z[:, 0]
            right = (said == y["validation"].bool()).float().mean()
            assert held_out[epoch] == pytest.approx(
                (float(loss_of("validation", every)), float(right)), abs=1e-6
            )
