"""Bad batches: each is skipped, named and counted, and harms nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fit import CPU, Fit, losses, same
from torch import nn

from danlu.data.hide import for_causal
from danlu.data.load import PackedLoader, in_order
from danlu.data.modality import Spec
from danlu.errors import DivergedError, Interrupted
from danlu.log import Screen
from danlu.model import heads
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import Checkpoints
from danlu.train.guard import Guard
from danlu.train.loop import train
from small import config, made_up

LENGTH, VOCAB = 32, 96
GENERATOR = np.random.default_rng(0)


def poems(number, seed):
    """Documents in which a token mostly says which one follows."""
    draw = np.random.default_rng(seed)
    documents = made_up([LENGTH] * number, seed, VOCAB)
    for row in range(number):
        ids = documents[row]
        for place in range(2, LENGTH):
            if draw.random() < 0.8:
                ids[place] = 4 + (7 * ids[place - 1] + 3) % (VOCAB - 4)
    return documents


TRAIN, HELD_OUT = poems(256, 1), poems(64, 2)


class Language:
    """A small language model's training, 160 steps, into which faults are put."""

    def __init__(self, folder, spoil=None, **others):
        self.rows, self.calls, self.spoil = [], 0, spoil
        torch.manual_seed(0)
        self.model = heads.build(config(vocab_size=VOCAB, causal=True), "causal")
        plain = objectives.tokens()
        self.settings = Training(
            **{"learning_rate": 0.01, "epochs": 5, "precision": "float32", "log_every": 1} | others
        )
        source = PackedLoader(TRAIN, 8, LENGTH, 1, 3, "causal", 0.15, Spec(VOCAB))
        self.checkpoints = Checkpoints(folder, 2)
        with Screen(quiet=True).progress(1, "steps") as bar:
            self.progress = train(
                self.model, replace(plain, total=self.total), source, self.validate, self.settings,
                seed=3, device=CPU, checkpoints=self.checkpoints, log=self.rows.append, bar=bar,
                stopping=self.stopping,
            )  # fmt: skip
        self.loss = self.validate()["loss"]

    def validate(self):
        held_out = [for_causal(batch) for batch in in_order(HELD_OUT, 16)]
        return objectives.figures(self.model, objectives.tokens(), held_out, CPU)

    def stopping(self):
        return False

    def total(self, outputs, batch):
        self.calls += 1
        loss = objectives.tokens().total(outputs, batch)
        return self.spoil(self.calls, loss, self.model) if self.spoil else loss

    def of(self, event):
        return [row for row in self.rows if row["event"] == event]


def times_100(call, loss, model):
    return loss * 100 if call == 90 else loss


def no_number(call, loss, model):
    return loss * math.nan if call == 90 else loss


def gradient_alone(call, loss, model):
    """The loss is a number, and one gradient is none."""
    if call == 90:
        handle = model.backbone.layers[0].attention.o_proj.weight.register_hook(
            lambda gradient: (handle.remove(), gradient * math.inf)[1]
        )
    return loss


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    found = Language(tmp_path_factory.mktemp("clean"))
    assert found.of("skipped") == []
    assert found.loss < 0.6 * math.log(VOCAB), "it learns, so a spoilt step could show"
    return found


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(times_100, "spike"), (no_number, "loss"), (gradient_alone, "gradient")],
)
def test_one_bad_batch_costs_one_step_and_no_quality(tmp_path, clean, spoil, reason, optimizer):
    if optimizer != "muon":
        clean = Language(tmp_path / "clean", optimizer=optimizer)
    found = Language(tmp_path / "c", spoil, optimizer=optimizer)
    (row,) = found.of("skipped")
    assert (row["step"], row["reason"]) == (90, reason)
    assert found.loss == pytest.approx(clean.loss, rel=0.005)
    assert found.progress.counts == {
        "loss": 0, "gradient": 0, "spike": 0, "rewinds": 0, reason: 1,
    }  # fmt: skip
    source = PackedLoader(TRAIN, 8, LENGTH, 1, 3, "causal", 0.15, Spec(VOCAB))
    (batch,) = source.load(*divmod(89, source.steps_per_epoch))
    assert row["rows"] == sorted(batch.row_N.tolist())
    told = next(r for r in found.of("step") if r["step"] == 90)
    assert told["skipped"] == 1
    assert told["update_ratio"] == 0
    assert all(r["update_ratio"] > 0 for r in found.of("step") if r["step"] != 90)


def test_without_the_guard_the_same_batch_does_harm(tmp_path, clean):
    found = Language(tmp_path, times_100, on_spike="keep", gradient_clip=0.0, optimizer="sgd",
                     learning_rate=0.3)  # fmt: skip
    usual = Language(tmp_path / "u", None, gradient_clip=0.0, optimizer="sgd", learning_rate=0.3)
    assert found.of("skipped") == []
    assert found.loss > 1.005 * usual.loss


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_a_skipped_step_leaves_weights_moments_and_average_as_they_were(tmp_path, optimizer):
    seen = {}

    def spoil(call, loss, model):
        if call in (40, 41):  # before the bad step, and before the one behind it
            seen[call] = {n: t.clone() for n, t in model.state_dict().items()}
        return loss * math.nan if call == 40 else loss

    options = {"optimizer": optimizer, "learning_rate": 0.01, "average": 0.9, "steps": 40}
    found = Language(tmp_path / "c", spoil, checkpoint_every=39, **options)
    before, after = (
        Checkpoints(tmp_path / "c", 9)._read(tmp_path / "c" / f"step-{n:08d}")[0] for n in (39, 40)
    )
    assert len(found.of("skipped")) == 1
    assert same(before, after)


def test_the_update_ratio_is_the_step_over_the_weights(tmp_path):
    start = Fit(tmp_path / "a").weights
    options = {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    fit = Fit(tmp_path / "c").run(steps=1, gradient_clip=0.0, warmup=0.0, **options)
    moved = sum((fit.weights[n] - start[n]).double().pow(2).sum() for n in start) ** 0.5
    size = sum(start[n].double().pow(2).sum() for n in start) ** 0.5
    (row,) = fit.of("step")
    assert row["update_ratio"] == pytest.approx(float(moved / size), rel=1e-4)
    assert row["update_ratio"] == pytest.approx(0.5 * row["gradient_norm"] / float(size), rel=1e-4)


def guard(**others):
    return Guard(Training(**others), nn.Linear(1, 1))


def judged(guard, losses, counts=None):
    """Return which of the losses are spikes."""
    counts = counts or [32.0] * len(losses)
    return [
        i
        for i, (loss, n) in enumerate(zip(losses, counts, strict=True))
        if not guard.allows(float(loss), 1.0, n) and guard.fault == "spike"
    ]


@pytest.mark.parametrize(
    "losses",
    [
        9 * np.exp(-np.arange(400) / 100) + 0.02 * GENERATOR.standard_normal(400),  # of tokens
        np.exp(GENERATOR.standard_normal(400) * 1.5 - 4),  # learnt by heart: some are far above
        np.square(GENERATOR.standard_t(3, (400, 32))).mean(1),  # squares of a heavy tail
        np.full(400, 0.7),
        np.zeros(400),
    ],
    ids=["tokens", "by heart", "heavy tail", "constant", "nothing"],
)
def test_usual_losses_are_no_spikes(losses):
    assert judged(guard(), losses) == []


@pytest.mark.parametrize("at", [17, 20, 40])
def test_a_hundredfold_loss_is_a_spike_while_losses_fall_quickly(at):
    losses = 9 * np.exp(-np.arange(100) / 20) * np.exp(0.05 * GENERATOR.standard_normal(100))
    losses[at] *= 100
    assert judged(guard(), losses) == [at]


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_a_hundredfold_loss_is_a_spike_at_any_level(level):
    losses = level * np.exp(0.2 * GENERATOR.standard_normal(200))
    losses[[50, 120]] *= 100
    assert judged(guard(), losses) == [50, 120]


def test_what_is_not_finite_poisons_no_comparison():
    losses = np.ones(100)
    losses[[30, 31, 40]] = [math.nan, math.inf, -math.inf]
    losses[60] = 100
    one = guard()
    assert judged(one, losses) == [60]
    assert one.counts == {"loss": 3, "gradient": 0, "spike": 1, "rewinds": 0}


def test_a_small_last_batch_may_vary_by_more():
    draw = np.random.default_rng(5)
    big, single = draw.exponential(0.1, (200, 32)).mean(1), 0.1 * 8
    counts = [32.0] * 200
    losses = [*big, single]
    assert judged(guard(spike_threshold=5.0), losses, [*counts, 1.0]) == []
    assert judged(guard(spike_threshold=5.0), losses, [*counts, 32.0]) == [200]


def test_the_first_losses_are_compared_with_nothing():
    assert judged(guard(), [1.0] * 5 + [1e6]) == []


def always(call, loss, model):
    return loss * 100 if call >= 30 else loss


def test_spikes_that_do_not_end_stop_training_with_advice(tmp_path):
    with pytest.raises(DivergedError, match=r"5 steps in a row .* far above") as caught:
        Language(tmp_path, always)
    assert "learning_rate" in caught.value.mend
    assert caught.value.exit_code == 1


def test_a_run_of_which_no_step_can_be_taken_is_not_called_trained(tmp_path):
    fit = Fit(tmp_path / "c", labels=torch.full((40, 1), math.nan), kind="regress")
    with pytest.raises(DivergedError, match="2 steps in a row"):
        fit.run(validate=losses([1.0]), steps=2)


def test_a_rewind_goes_back_to_the_checkpoint_and_passes_over_the_batches(tmp_path, clean):
    found = Language(tmp_path / "c", times_100, on_spike="rewind", checkpoint_every=20)
    (row,) = found.of("rewound")
    assert (row["step"], row["to"]) == (90, 80)
    steps = [r["step"] for r in found.of("step")]
    assert steps == [*range(1, 90), *range(81, 161)]
    assert found.progress.batch == 170
    assert found.progress.counts["rewinds"] == 1
    assert found.loss == pytest.approx(clean.loss, rel=0.01)


def test_rewinds_without_end_stop_training(tmp_path):
    def every_tenth(call, loss, model):
        return loss * 100 if call > 60 and call % 10 == 0 else loss

    with pytest.raises(DivergedError, match="back to the same checkpoint 3 times"):
        Language(tmp_path, every_tenth, on_spike="rewind", checkpoint_every=20, max_skipped=2)


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("on_spike", ["skip", "rewind"])
@pytest.mark.parametrize(("at", "asked"), [(88, False), (95, False), (84, True), (95, True)])
def test_an_interrupted_run_meets_the_same_spike_in_the_same_way(tmp_path, on_spike, at, asked):
    """The spike belongs to a batch, so whoever sees the batch again must see it again."""
    source = PackedLoader(TRAIN, 8, LENGTH, 1, 3, "causal", 0.15, Spec(VOCAB))
    bad = source.load(*divmod(89, source.steps_per_epoch))[0].ids_BT
    seen = []

    class Spoilt(Language):
        def total(self, outputs, batch):
            loss = objectives.tokens().total(outputs, batch)
            return loss * 100 if torch.equal(batch.ids_BT, bad) else loss

    class Broken(Spoilt):
        def total(self, outputs, batch):
            seen.append(batch)
            if len(seen) == at and not asked:
                raise Killed
            return super().total(outputs, batch)

        def stopping(self):  # and so a checkpoint is left that nobody goes back to
            return asked and len(seen) >= at

    options = {"on_spike": on_spike, "checkpoint_every": 20, "average": 0.9}
    whole = Spoilt(tmp_path / "whole", **options)
    with pytest.raises((Killed, Interrupted)):
        Broken(tmp_path / "broken", **options)
    resumed = Spoilt(tmp_path / "broken", **options)
    assert resumed.progress == whole.progress
    assert same(resumed.model.state_dict(), whole.model.state_dict())
