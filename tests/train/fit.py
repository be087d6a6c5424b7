"""One small training run, for the tests of the loop."""

from __future__ import annotations

import numpy as np
import torch

from danlu.data.load import DocumentLoader, in_order
from danlu.data.modality import BEGIN_ID, Spec
from danlu.data.text import Documents
from danlu.log import Screen
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import build
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import Checkpoints
from danlu.train.loop import train

CPU = torch.device("cpu")
VOCAB, NUM_DOCUMENTS, BATCH = 24, 40, 8  # five steps an epoch


def made_up():
    """Documents of two kinds, told apart by which half of the vocabulary prevails."""
    generator = np.random.default_rng(11)
    label = generator.integers(0, 2, NUM_DOCUMENTS)
    documents = []
    for kind in label:
        size = generator.integers(4, 14)
        own = generator.random(size) < 0.75
        words = np.where(own, 4 + 10 * kind, 14 - 10 * kind) + generator.integers(0, 10, size)
        documents.append(np.array([BEGIN_ID, *words], np.int32))
    return Documents.of(documents), torch.from_numpy(label)


DOCUMENTS, LABELS = made_up()


class Fit:
    """One training run into a folder; a second one into the same folder resumes it."""

    def __init__(self, folder, *, seed=1, dropout=0.0, mask=0.0, labels=LABELS, kind="classify"):
        self.folder, self.seed, self.mask, self.labels, self.kind = folder, seed, mask, labels, kind
        torch.manual_seed(seed)
        config = BackboneConfig(
            vocab_size=VOCAB,
            num_layers=1,
            dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            hidden_dim=32,
            dropout=dropout,
        )
        self.model = build(config, kind, num_outputs=1 if kind == "regress" else 2, dropout=dropout)
        self.rows = []

    def log(self, row):
        self.rows.append(row)

    def validate(self):
        held_out = in_order(DOCUMENTS, 16, LABELS)
        loss, count = (
            objectives.figures(self.model, objectives.classes(), held_out, CPU)[key]
            for key in ("loss", "n")
        )
        return {"loss": loss, "n": count}

    def source(self, batch_size, accumulate):
        return DocumentLoader(
            documents=DOCUMENTS,
            labels=self.labels,
            batch_size=batch_size,
            accumulate=accumulate,
            seed=self.seed,
            spec=Spec(VOCAB),
            mask_probability=self.mask,
        )

    def run(
        self, *, log=None, validate=None, source=None, stopping=None, batch_size=BATCH, **others
    ):
        chosen = {
            "epochs": 4,
            "learning_rate": 0.02,
            "precision": "float32",
            "log_every": 1,
        }
        settings = Training(**chosen | others)
        source = source or self.source(batch_size, settings.accumulate or 1)
        self.checkpoints = Checkpoints(self.folder, settings.keep_checkpoints)
        regress = self.kind == "regress"
        with Screen(quiet=True).progress(1, "steps") as bar:
            self.progress = train(
                self.model,
                objectives.error() if regress else objectives.classes(),
                source,
                validate or self.validate,
                settings,
                seed=self.seed,
                device=CPU,
                checkpoints=self.checkpoints,
                log=log or self.log,
                bar=bar,
                stopping=stopping or (lambda: False),
            )
        return self

    @property
    def weights(self):
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def of(self, event):
        return [row for row in self.rows if row["event"] == event]


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(values):
    """A validation that returns the given losses one after another."""
    rest = iter(values)
    return lambda: {"loss": next(rest), "n": 1}
