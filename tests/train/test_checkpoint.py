"""Checkpoints: exact, kept as promised, and believed only when whole."""

import json
import shutil

import pytest
import torch
from torch import nn

from danlu.model.backbone import BackboneConfig
from danlu.model.heads import build as build_model
from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.checkpoint import Checkpoints, pack, unique_tensors, unpack

CONFIG = BackboneConfig(
    vocab_size=11, num_layers=1, dim=8, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=12
)


def fresh(optimizer="adamw", seed=0, kind="masked", **others):
    torch.manual_seed(seed)
    model = build_model(CONFIG, kind)
    chosen = Training(optimizer=optimizer, learning_rate=0.03, **others)
    return model, optim.build(model, chosen)


def step(model, optimizers, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def record(number):
    return {"step": number, "best": 0.5, "stale": 0}


def folders(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def save_steps(checkpoints, numbers):
    """Save a checkpoint after each of the steps; return the weights of each."""
    model, optimizers = fresh()
    weights = {}
    for number in numbers:
        step(model, optimizers, number)
        checkpoints.save(number, model, optimizers, record(number))
        weights[number] = model.head.bias.detach().clone()
    return weights


def assert_latest(checkpoints, number, weights):
    tensors, found = checkpoints.latest()
    assert found["step"] == number
    assert torch.equal(tensors["model.head.bias"], weights[number])


@pytest.mark.parametrize(
    ("optimizer", "others"),
    [("adamw", {}), ("sgd", {}), ("sgd", {"momentum": 0.0}), ("muon", {})],
)
def test_a_resumed_optimizer_goes_on_to_the_bit(tmp_path, optimizer, others):
    model, optimizers = fresh(optimizer, **others)
    for number in range(3):
        step(model, optimizers, number)
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(3, model, optimizers, record(3))

    again, its_optimizers = fresh(optimizer, seed=99, **others)
    tensors, found = checkpoints.latest()
    unpack(tensors, found["groups"], again, its_optimizers)
    wanted, groups = pack(model, optimizers)
    resumed, its_groups = pack(again, its_optimizers)
    assert resumed.keys() == wanted.keys()
    assert all(torch.equal(resumed[key], wanted[key]) for key in wanted)
    assert json.loads(json.dumps(its_groups)) == json.loads(json.dumps(groups))

    step(model, optimizers, 7)
    step(again, its_optimizers, 7)
    wanted, resumed = pack(model, optimizers)[0], pack(again, its_optimizers)[0]
    assert all(torch.equal(resumed[key], wanted[key]) for key in wanted)


def test_the_last_few_are_kept_beside_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model, _ = fresh(seed=5)
    checkpoints.save_best(model, {"step": 1, "loss": 0.25})
    weights = save_steps(checkpoints, [1, 2, 3, 4, 5])
    assert folders(checkpoints) == ["best", "step-00000004", "step-00000005"]
    assert_latest(checkpoints, 5, weights)
    tensors, found = checkpoints.best()
    assert (found["step"], found["loss"]) == (1, 0.25)
    assert torch.equal(tensors["model.head.transform.0.weight"], model.head.transform[0].weight)


def test_a_better_model_takes_the_place_of_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    for number in (1, 2, 3):
        model, _ = fresh(seed=number)
        checkpoints.save_best(model, {"step": number})
    tensors, found = checkpoints.best()
    assert found["step"] == 3
    assert torch.equal(tensors["model.backbone.embedding.weight"], model.backbone.embedding.weight)
    assert folders(checkpoints) == ["best"]


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    weights = save_steps(checkpoints, [9, 10, 100])
    assert folders(checkpoints) == ["step-00000010", "step-00000100"]
    assert_latest(checkpoints, 100, weights)


def test_an_empty_folder_has_neither_latest_nor_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert checkpoints.latest() is None
    assert checkpoints.best() is None


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(position):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return damage


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", truncate),
        ("state.safetensors", flip(3)),  # the header's length
        ("state.safetensors", flip(40)),  # the header
        ("state.safetensors", flip(-1)),  # the last weight
        ("state.safetensors", empty),
        ("state.safetensors", remove),
        ("state.json", truncate),
        ("state.json", empty),
        ("state.json", remove),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    weights = save_steps(checkpoints, [1, 2])
    damage(checkpoints.folder / "step-00000002" / name)
    assert_latest(checkpoints, 1, weights)


@pytest.mark.parametrize(
    ("old", "new"), [('"step": 2', '"step": 3'), ('"stale": 0', '"stale": 1'), ("0.03", "0.02")]
)
def test_a_record_with_a_flipped_bit_is_passed_over(tmp_path, old, new):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    weights = save_steps(checkpoints, [1, 2])
    path = checkpoints.folder / "step-00000002" / "state.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    assert_latest(checkpoints, 1, weights)


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "c", keep=keep)
    save_steps(checkpoints, [8, 9])
    for path in checkpoints.folder.glob("step-*/state.safetensors"):
        truncate(path)
    assert checkpoints.latest() is None  # so training begins anew
    weights = save_steps(checkpoints, [1, 2])
    assert_latest(checkpoints, 2, weights)


@pytest.mark.parametrize("damage", [truncate, flip(-1), remove])
def test_a_damaged_best_is_not_believed(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    model, _ = fresh()
    checkpoints.save_best(model, {"step": 1})
    damage(checkpoints.folder / "best" / "state.safetensors")
    assert checkpoints.best() is None


def test_the_best_is_found_if_the_exchange_with_a_better_one_was_cut_short(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    model, _ = fresh()
    checkpoints.save_best(model, {"step": 1})
    (checkpoints.folder / "best").rename(checkpoints.folder / ".retired-best")
    assert checkpoints.best()[1]["step"] == 1
    checkpoints.save_best(model, {"step": 2})
    assert checkpoints.best()[1]["step"] == 2


def test_what_was_left_half_written_is_neither_read_nor_in_the_way(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    weights = save_steps(checkpoints, [1, 2])
    stale = checkpoints.folder / ".writing-step-00000003"
    shutil.copytree(checkpoints.folder / "step-00000002", stale)
    (stale / "rubbish").write_text("left by a crash")
    assert_latest(checkpoints, 2, weights)
    model, optimizers = fresh(seed=3)
    checkpoints.save(3, model, optimizers, record(3))
    assert checkpoints.latest()[1]["step"] == 3
    assert folders(checkpoints) == ["step-00000002", "step-00000003"]
    assert not (checkpoints.folder / "step-00000003" / "rubbish").exists()


def test_one_step_may_be_saved_twice(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    save_steps(checkpoints, [1, 2])
    model, optimizers = fresh(seed=8)
    checkpoints.save(2, model, optimizers, record(2))
    assert_latest(checkpoints, 2, {2: model.head.bias})
    assert folders(checkpoints) == ["step-00000001", "step-00000002"]


def test_tied_tensors_are_stored_once_and_put_back_under_both_names():
    def tied(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model

    one, other = tied(1), tied(2)
    assert list(unique_tensors(one)) == ["0.weight"]
    tensors, groups = pack(one, [])
    assert list(tensors) == ["model.0.weight"]
    unpack(tensors, groups, other, [])
    assert torch.equal(other[1].weight, one[0].weight)
    assert other[1].weight is other[0].weight


def test_weights_of_another_shape_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    save_steps(checkpoints, [1])
    tensors, found = checkpoints.latest()
    other = build_model(BackboneConfig(**CONFIG.to_dict() | {"dim": 16}), "masked")
    optimizers = optim.build(other, Training(learning_rate=0.1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        unpack(tensors, found["groups"], other, optimizers)
