"""The training loop on a small real problem: it learns, and it can be stopped anywhere."""

import math

import numpy as np
import pytest
import torch
from fit import CPU, NUM_DOCUMENTS, VOCAB, Fit, losses, same

from danlu.data.load import PackedLoader
from danlu.data.modality import BEGIN_ID, Spec
from danlu.data.text import Documents
from danlu.errors import DivergedError
from danlu.log import Screen
from danlu.model.heads import build
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import Checkpoints
from danlu.train.loop import train
from tolerances import SIMPLE


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def test_training_makes_the_loss_fall(tmp_path):
    fit = Fit(tmp_path / "c").run()
    found = [row["loss"] for row in fit.of("validation")]
    assert fit.of("step")[0]["loss"] == pytest.approx(math.log(2), rel=SIMPLE)
    assert len(found) == 4
    assert found[-1] < 0.5 * math.log(2)
    assert fit.progress.step == 20
    assert fit.progress.best == min(found)


def test_what_is_logged_is_what_was_done(tmp_path):
    fit = Fit(tmp_path / "c").run(epochs=2, warmup=0.2, schedule="linear")
    rows = fit.of("step")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["epoch"] for row in rows] == pytest.approx([n / 5 for n in range(1, 11)])
    rates = [0.5, 1.0, *(1 - n / 8 for n in range(8))]
    assert [row["learning_rate"] / 0.02 for row in rows] == pytest.approx(rates)
    assert all(row["gradient_norm"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert {row["loss_unit"] for row in rows} == {"nats/document"}


def test_one_seed_gives_one_model_and_another_seed_another(tmp_path):
    one, again = (
        Fit(tmp_path / name, dropout=0.2, mask=0.2).run(epochs=2).weights for name in "ab"
    )
    other = Fit(tmp_path / "c", dropout=0.2, mask=0.2, seed=2).run(epochs=2).weights
    assert same(one, again)
    assert not same(one, other)


CASES = [
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "accumulate": 3},
    {"optimizer": "sgd", "learning_rate": 0.2},
    {"optimizer": "muon", "accumulate": 2},
]


@pytest.mark.parametrize("where", ["log", "validate"])
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, case, where):
    options = {"epochs": 3, "checkpoint_every": 4, **case}
    noisy = {"dropout": 0.3, "mask": 0.2}
    whole = Fit(tmp_path / "whole", **noisy).run(**options)

    broken = Fit(tmp_path / "broken", **noisy)

    def log(row):
        if where == "log" and row["step"] == 10:
            raise Interrupted

    def validate():
        if where == "validate" and broken.checkpoints.latest():
            raise Interrupted
        return broken.validate()

    with pytest.raises(Interrupted):
        broken.run(log=log, validate=validate, **options)
    assert broken.checkpoints.latest()[1]["step"] == (8 if where == "log" else 4)

    resumed = Fit(tmp_path / "broken", **noisy)
    torch.manual_seed(12345)  # a new process draws from elsewhere
    resumed.run(**options)
    assert resumed.progress == whole.progress
    assert same(resumed.weights, whole.weights)
    last, wanted = resumed.checkpoints.latest(), whole.checkpoints.latest()
    assert same(last[0], wanted[0])
    assert last[1] == wanted[1]
    figures = ("step", "best", "loss")
    after = [[row[name] for name in figures] for row in resumed.of("validation")]
    assert (
        after == [[row[name] for name in figures] for row in whole.of("validation")][-len(after) :]
    )


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_an_undamaged_one(tmp_path):
    options = {"epochs": 3, "checkpoint_every": 4}
    whole = Fit(tmp_path / "whole", dropout=0.3).run(**options)

    def log(row):
        if row["step"] == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        Fit(tmp_path / "broken", dropout=0.3).run(log=log, **options)
    path = tmp_path / "broken" / "step-00000008" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    resumed = Fit(tmp_path / "broken", dropout=0.3).run(**options)
    assert resumed.of("step")[0]["step"] == 5
    assert same(resumed.weights, whole.weights)


def test_a_finished_run_is_not_trained_further(tmp_path):
    whole = Fit(tmp_path / "c").run(epochs=2)
    again = Fit(tmp_path / "c").run(epochs=2)
    assert again.rows == [{"event": "resumed", "step": 10}]
    assert same(again.weights, whole.weights)


@pytest.mark.parametrize("parts", [4, 3])  # of the same size, and not
def test_a_batch_in_parts_trains_as_the_whole(tmp_path, parts):
    # With SGD, because Adam's division turns the rounding of a gradient near
    # zero into a difference of the size of the learning rate.
    options = {"optimizer": "sgd", "learning_rate": 0.2, "epochs": 2}
    one = Fit(tmp_path / "one").run(accumulate=1, **options)
    other = Fit(tmp_path / "other").run(accumulate=parts, **options)
    start = Fit(tmp_path / "start").weights
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=SIMPLE, atol=SIMPLE)
    assert (one.weights["head.output.weight"] - start["head.output.weight"]).abs().max() > 0.1
    wanted = [row["loss"] for row in one.of("step")]
    assert [row["loss"] for row in other.of("step")] == pytest.approx(wanted, SIMPLE, SIMPLE)


def test_patience_stops_and_the_best_weights_are_put_back(tmp_path):
    fit, seen = Fit(tmp_path / "c"), []
    answers = losses([3.0, 2.0, 1.0, 1.5, 1.0, 0.1])

    def validate():
        seen.append(fit.weights)
        return answers()

    fit.run(validate=validate, epochs=6, patience=2)
    assert fit.progress.step == 25
    assert (fit.progress.best, fit.progress.stale) == (1.0, 2)
    assert [row["best"] for row in fit.of("validation")] == [True, True, True, False, False]
    assert same(fit.weights, seen[2])
    assert not same(fit.weights, seen[4])


def test_patience_is_remembered_by_a_resumed_run(tmp_path):
    answers = losses([1.0, 2.0])

    def validate():
        try:
            return answers()
        except StopIteration:
            raise Interrupted from None

    with pytest.raises(Interrupted):
        Fit(tmp_path / "c").run(validate=validate, epochs=6, patience=2)
    resumed = Fit(tmp_path / "c").run(validate=losses([3.0, 0.0]), epochs=6, patience=2)
    assert resumed.progress.step == 15
    again = Fit(tmp_path / "c").run(validate=losses([]), epochs=6, patience=2)
    assert again.progress.step == 15


def test_a_better_result_after_a_worse_one_renews_the_patience(tmp_path):
    answers = losses([3.0, 4.0, 2.0, 4.0, 1.0])
    fit = Fit(tmp_path / "c").run(validate=answers, epochs=5, patience=2)
    assert fit.progress.step == 25
    assert fit.progress.stale == 0


def test_a_best_loss_of_nothing_is_remembered_by_a_resumed_run(tmp_path):
    answers = losses([0.0])

    def validate():
        try:
            return answers()
        except StopIteration:
            raise Interrupted from None

    with pytest.raises(Interrupted):
        Fit(tmp_path / "c").run(validate=validate, epochs=2)
    resumed = Fit(tmp_path / "c").run(validate=losses([1.0]), epochs=2)
    assert (resumed.progress.best, resumed.progress.stale) == (0.0, 1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_that_is_not_a_number_is_never_the_best_and_breaks_no_checkpoint(
    tmp_path, loss
):
    fit = Fit(tmp_path / "c").run(validate=losses([loss, loss]), epochs=2)
    assert fit.progress.step == 10
    assert fit.checkpoints.best() is None
    assert fit.checkpoints.latest()[1]["step"] == 10
    resumed = Fit(tmp_path / "c").run(validate=losses([1.0]), epochs=3)
    assert resumed.progress.best == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_gradients_that_are_no_numbers_stop_training_and_spoil_nothing(tmp_path, value):
    labels = torch.zeros(NUM_DOCUMENTS, 1)
    options = {"optimizer": "sgd", "learning_rate": 0.01}
    first = Fit(tmp_path / "c", labels=labels, kind="regress")
    first.run(validate=losses([1.0]), epochs=1, **options)
    before = first.checkpoints.latest()

    spoilt = Fit(tmp_path / "c", labels=torch.full_like(labels, value), kind="regress")
    with pytest.raises(DivergedError, match=r"5 steps in a row were skipped, .* is not finite"):
        spoilt.run(validate=losses([1.0]), epochs=2, **options)
    after = spoilt.checkpoints.latest()
    assert after[1] == before[1]
    assert same(after[0], before[0])
    assert same(spoilt.weights, first.weights)


def test_clipping_bounds_the_length_of_a_step(tmp_path):
    options = {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "epochs": 1,
        "batch_size": NUM_DOCUMENTS,
    }
    start = Fit(tmp_path / "start").weights

    def moved(clip):
        fit = Fit(tmp_path / f"clip-{clip}").run(gradient_clip=clip, **options)
        square = sum((fit.weights[n] - start[n]).double().pow(2).sum() for n in start)
        return float(square) ** 0.5, fit.of("step")[0]["gradient_norm"]

    free, norm = moved(0.0)
    assert free == pytest.approx(norm, rel=SIMPLE)
    bound = norm / 3
    clipped, logged = moved(bound)
    assert clipped == pytest.approx(bound, rel=SIMPLE)
    assert logged == pytest.approx(norm, rel=SIMPLE)  # what is logged is what came in
    loose, _ = moved(norm * 2)
    assert loose == pytest.approx(norm, rel=SIMPLE)


def test_the_logged_loss_is_the_mean_of_all_steps_since_the_last_row(tmp_path):
    every = Fit(tmp_path / "every").run(epochs=3)
    sixth = Fit(tmp_path / "sixth").run(epochs=3, log_every=6)
    single = [row["loss"] for row in every.of("step")]
    found = {row["step"]: row["loss"] for row in sixth.of("step")}
    assert list(found) == [6, 12, 15]
    assert found[12] == pytest.approx(np.mean(single[6:12]), rel=SIMPLE)


def test_a_batch_with_nothing_to_predict_has_a_loss_that_is_a_number(tmp_path):
    # A document that holds <bos> alone has no token to hide.
    documents = Documents.of([np.array([BEGIN_ID], np.int32)] * 2)
    torch.manual_seed(0)
    fit = Fit(tmp_path / "c")
    model = build(fit.model.backbone.config, "masked")
    loader = PackedLoader(documents, 1, 16, 1, 0, "masked", 0.15, Spec(VOCAB))
    settings = Training(learning_rate=0.1, precision="float32", log_every=1)
    with Screen(quiet=True).progress(1, "steps") as bar:
        train(
            model,
            objectives.tokens(),
            loader,
            losses([1.0]),
            settings,
            seed=0,
            device=CPU,
            checkpoints=Checkpoints(tmp_path / "c", 1),
            log=fit.log,
            bar=bar,
        )
    assert all(math.isfinite(row["loss"]) for row in fit.of("step"))
