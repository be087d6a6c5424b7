"""What a batch norm brings to training: resumed, averaged, computed in parts, saved, alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fit import CPU, losses, same
from safetensors.torch import load_file, save_file

from danlu.data.load import DocumentLoader
from danlu.data.modality import Grid, Spec
from danlu.log import Screen
from danlu.model.classic import ClassicConfig
from danlu.model.heads import build
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.average import Average
from danlu.train.checkpoint import Checkpoints, unique_tensors
from danlu.train.loop import forward_and_backward, train
from tolerances import COMPOSED, SIMPLE

FLOAT32 = Training(precision="float32")  # where bfloat16 is fast, `auto` takes it
SPEC = Spec(5, value_dims=3, value_ids=1)


def grid(n=33):
    values = np.random.default_rng(0).normal(2.0, 3.0, (n, 1, 3)).astype(np.float32)
    return Grid(np.full((n, 1), 4, np.int32), values, 4)


GRID = grid()
LABELS = torch.from_numpy((GRID.values[:, 0].sum(1) > 6).astype(np.int64))


def fresh(norm="batch"):
    torch.manual_seed(2)
    config = ClassicConfig("mlp", 5, 2, 8, 8, norm=norm, value_dims=3, value_ids=1)
    return build(config, "classify", 2)


def loader(batch_size=8, accumulate=1):
    return DocumentLoader(GRID, LABELS, batch_size, accumulate, 1, SPEC)


def run(folder, model, *, validate=None, log=None, batch_size=8, **others):
    settings = Training(**{
        "epochs": 4, "learning_rate": 0.02, "precision": "float32", "optimizer": "adamw",
        "average": 0.9, "log_every": 1, "schedule": "constant",
    } | others)  # fmt: skip
    with Screen(quiet=True).progress(1, "steps") as bar:
        train(
            model, objectives.classes(), loader(batch_size, settings.accumulate or 1),
            validate or losses([4, 3, 2, 1]), settings, seed=1, device=CPU,
            checkpoints=Checkpoints(folder, 2), log=log or (lambda _: None), bar=bar,
        )  # fmt: skip
    return model


class Killed(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", fresh())

    def kill(row):
        if row["step"] == 8:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", fresh(), log=kill)
    resumed = run(tmp_path / "cut", fresh(), validate=losses([3, 2, 1]))
    assert same(whole.state_dict(), resumed.state_dict())
    moved = whole.state_dict()["backbone.layers.0.norm.running_mean"]
    assert moved.abs().max() > 0.1


def test_the_average_holds_the_running_statistics_too():
    model = fresh()
    average = Average(model, 0.9)
    names = [name for name, _ in model.named_buffers()]
    expected = {name: value.double().clone() for name, value in model.named_buffers()}
    for step in range(1, 30):
        forward_and_backward(model, objectives.classes(), loader().load(step, 0), Training(), CPU)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.named_buffers():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    last = {name: value.clone() for name, value in model.named_buffers()}
    with average.applied():
        for name, value in model.named_buffers():
            torch.testing.assert_close(value.double(), expected[name], rtol=SIMPLE, atol=SIMPLE)
            assert not torch.equal(value, last[name]), name
    assert len(names) == 4
    for name, value in model.named_buffers():
        assert torch.equal(value, last[name])


def test_the_averages_statistics_are_near_those_measured_under_its_weights(tmp_path):
    """What the average claims in place of a pass over the data."""
    model = run(
        tmp_path, fresh(), epochs=40, learning_rate=0.003, validate=losses(range(40, 0, -1))
    )
    batch = GRID.lay(np.arange(len(GRID)))
    with torch.no_grad():
        hidden = model.backbone.embed(batch.ids_BT, batch.values_UK, batch.slots_U)
        first = hidden[batch.document_BT >= 0]
    norm = model.backbone.layers[0].norm
    spread = first.std(0)
    assert ((norm.running_mean - first.mean(0)).abs() < 0.35 * spread).all()
    assert ((norm.running_variance.sqrt() / spread - 1).abs() < 0.35).all()


def test_parts_have_statistics_of_their_own():
    """So the gradient is the mean of the parts', each normed by itself, not the whole's."""
    model, objective = fresh(), objectives.classes()
    whole_model = fresh()
    parts = loader(32, 4).load(0, 0)
    assert len(parts) == 4
    with torch.no_grad():
        for made in (model, whole_model):
            torch.nn.init.normal_(
                made.head.output.weight, generator=torch.Generator().manual_seed(0)
            )
    forward_and_backward(model, objective, parts, FLOAT32, CPU)
    forward_and_backward(whole_model, objective, loader(32).load(0, 0), FLOAT32, CPU)
    mean, variance = torch.zeros(8), torch.ones(8)
    for part in parts:
        x = model.backbone.embed(part.ids_BT, part.values_UK, part.slots_U)[part.document_BT >= 0]
        mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0)
    norm = model.backbone.layers[0].norm
    torch.testing.assert_close(norm.running_mean, mean.detach(), rtol=COMPOSED, atol=COMPOSED)
    torch.testing.assert_close(
        norm.running_variance, variance.detach(), rtol=COMPOSED, atol=COMPOSED
    )
    found = model.backbone.values.weight.grad
    other = whole_model.backbone.values.weight.grad
    assert not torch.allclose(found, other, rtol=COMPOSED, atol=COMPOSED)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_parts_of_other_norms_have_together_the_gradient_of_the_whole(norm):
    one, other = fresh(norm), fresh(norm)
    for made in (one, other):
        torch.nn.init.normal_(made.head.output.weight, generator=torch.Generator().manual_seed(0))
    forward_and_backward(one, objectives.classes(), loader(32, 4).load(0, 0), FLOAT32, CPU)
    forward_and_backward(other, objectives.classes(), loader(32).load(0, 0), FLOAT32, CPU)
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        if first.grad is not None:
            torch.testing.assert_close(
                first.grad, second.grad, rtol=COMPOSED, atol=COMPOSED, msg=name
            )


def test_a_last_batch_of_a_single_row_is_trained_on(tmp_path):
    """Of 33 rows in batches of 8 the fifth has one."""
    assert loader().load(0, 4)[0].num_documents == 1
    model = fresh()
    steps = []
    run(tmp_path, model, epochs=1, log=lambda row: steps.append(row["event"]))
    assert steps.count("step") == 5
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_batches_of_single_rows_alone_leave_the_statistics_as_they_began(tmp_path):
    model = run(tmp_path, fresh(), epochs=1, batch_size=1, average=0.0)
    norm = model.backbone.layers[0].norm
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_variance, torch.ones(8))


def test_a_batch_that_is_not_finite_leaves_the_running_statistics_as_they_were(tmp_path):
    rows, broken = [], loader()
    clean = broken.documents.values[0].copy()
    broken.documents.values[0] = np.nan  # in one of an epoch's five batches
    try:
        model = run(tmp_path, fresh(), epochs=2, log=rows.append)
    finally:
        broken.documents.values[0] = clean
    skipped = [row for row in rows if row["event"] == "skipped"]
    assert len(skipped) == 2
    assert all(0 in row["rows"] for row in skipped)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert (model.backbone.layers[0].norm.running_mean != 0).any()


def test_running_statistics_are_saved_and_read_back(tmp_path):
    model = run(tmp_path / "run", fresh(), epochs=1, validate=losses([1]))
    tensors = unique_tensors(model)
    assert {name for name, _ in model.named_buffers()} <= tensors.keys()
    assert all(tensor.is_floating_point() for tensor in tensors.values())
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    again = fresh()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    batch = GRID.lay(np.arange(9))
    assert torch.equal(again.eval()(batch), model.eval()(batch))
    best, _ = Checkpoints(tmp_path / "run", 2).best()
    assert {f"model.{name}" for name in tensors} == best.keys()
