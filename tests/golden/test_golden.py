"""The first losses of two fixed runs, as they were when last looked at.

A change that alters them alters the mathematics of training; ``losses.json`` is written
anew by ``python tests/golden/test_golden.py``, with the reason in the commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from danlu.data.load import PackedLoader
from danlu.data.modality import BEGIN_ID, NUM_SPECIAL, Spec
from danlu.data.text import Documents
from danlu.log import Screen
from danlu.model import heads
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import Checkpoints
from danlu.train.loop import train
from small import computing, config

GOLDEN = Path(__file__).parent / "losses.json"
VOCAB, LENGTH, STEPS = 96, 64, 10
RUNS = [
    (objective, optimizer) for objective in ("causal", "masked") for optimizer in ("adamw", "muon")
]


def corpus() -> Documents:
    """Sixty documents in which each token tells much of the next one."""
    documents = []
    for number in range(60):
        token = 7 * number
        ids = [BEGIN_ID]
        for place in range(5 + 13 * number % 51):
            token = 5 * token + 3 + (number * place) % 4
            ids.append(NUM_SPECIAL + token % (VOCAB - NUM_SPECIAL))
        documents.append(np.array(ids, np.int32))
    return Documents.of(documents)


def losses(objective: str, optimizer: str, folder: Path) -> list[float]:
    """Train for ten steps in float32; return the loss of each."""
    torch.manual_seed(0)
    causal = objective == "causal"
    model = heads.build(config(vocab_size=VOCAB, causal=causal, qk_norm=not causal), objective)
    source = PackedLoader(corpus(), 8, LENGTH, 2, 3, objective, 0.15, Spec(VOCAB))
    settings = Training(
        optimizer=optimizer,
        learning_rate={"adamw": 0.01, "muon": 0.003}[optimizer],
        steps=STEPS,
        log_every=1,
        precision="float32",
    )
    found: list[float] = []
    with Screen(quiet=True).progress(STEPS, "steps") as bar:
        train(
            model,
            objectives.tokens(),
            source,
            lambda: {"loss": 0.0},
            settings,
            seed=3,
            device=torch.device("cpu"),
            checkpoints=Checkpoints(folder, 1),
            log=lambda row: found.append(row["loss"]) if row["event"] == "step" else None,
            bar=bar,
        )
    return found


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize(("objective", "optimizer"), RUNS)
def test_the_first_losses_are_those_on_record(tmp_path, objective, optimizer, with_kernels):
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))[f"{objective}, {optimizer}"]
    with computing(with_kernels=with_kernels):
        found = losses(objective, optimizer, tmp_path)
    assert len(found) == len(wanted) == STEPS
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found[-1] < found[0]


if __name__ == "__main__":
    record = {}
    for run in RUNS:
        with tempfile.TemporaryDirectory() as aside, computing(with_kernels=False):
            record[", ".join(run)] = [round(loss, 7) for loss in losses(*run, Path(aside))]
    GOLDEN.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
