"""Checkpoints: exact, kept as promised, and believed only when whole."""

import json
import shutil
import threading
import time

import pytest
import torch
from torch import nn

from danlu.errors import DivergedError, MachineError
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import build as build_model
from danlu.recipe.training import Training
from danlu.train import checkpoint, durable, optim, room
from danlu.train.average import Average
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


def record(number, best_step=0):
    return {"progress": {"step": number, "best_step": best_step}}


def folders(checkpoints):
    checkpoints.settle()
    return sorted(path.name for path in checkpoints.folder.iterdir())


def save_steps(checkpoints, numbers):
    """Save a checkpoint after each of the steps; return the weights of each."""
    model, optimizers = fresh()
    weights = {}
    for number in numbers:
        step(model, optimizers, number)
        checkpoints.save(number, model, optimizers, record(number))
        checkpoints.copied()
        weights[number] = model.head.bias.detach().clone()
    checkpoints.settle()
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


def test_the_last_few_are_kept_beside_the_best_that_they_name(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model, optimizers = fresh()
    kept = {}
    for number, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5)]:
        step(model, optimizers, number)
        kept[number] = model.head.bias.detach().clone()
        found = {"step": number, "loss": 1 / number} if best == number else None
        checkpoints.save(number, model, optimizers, record(number, best), best=found)
        checkpoints.copied()
    # Whoever goes on from step 4 finds the best of then.
    assert folders(checkpoints) == [
        "best-00000003", "best-00000005", "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert_latest(checkpoints, 5, kept)
    for asked, number in ((None, 5), (5, 5), (3, 3)):
        tensors, found = checkpoints.best(asked)
        assert (found["step"], found["loss"]) == (number, 1 / number)
        assert torch.equal(tensors["model.head.bias"], kept[number])
        assert not any(key.startswith("optimizer") for key in tensors)
    assert checkpoints.best(4) is None


def test_the_best_is_the_average_where_there_is_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    model, optimizers = fresh()
    average = Average(model, 0.5)
    for number in (1, 2, 3):
        step(model, optimizers, number)
        average.update(number)
    checkpoints.save(3, model, optimizers, record(3, 3), average, best={"step": 3})
    tensors, _ = checkpoints.best()
    with average.applied():
        wanted = {f"model.{n}": t.clone() for n, t in unique_tensors(model).items()}
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    assert not torch.equal(tensors["model.head.bias"], model.head.bias)


def test_what_is_between_two_scheduled_ones_gives_way_to_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model, optimizers = fresh()
    seen = []
    for number, scheduled in [(2, True), (3, False), (4, True), (5, False), (6, False)]:
        checkpoints.save(number, model, optimizers, record(number), scheduled=scheduled)
        seen.append(folders(checkpoints))
        assert checkpoints.latest()[1]["step"] == number
    assert seen[1:3] == [
        ["pause-00000003", "step-00000002"], ["step-00000002", "step-00000004"],
    ]  # fmt: skip
    assert seen[-1] == ["pause-00000006", "step-00000002", "step-00000004"]
    assert checkpoints.latest(scheduled=True)[1]["step"] == 4


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
    ("old", "new"),
    [('"step": 2', '"step": 3'), ('"best_step": 0', '"best_step": 1'), ("0.03", "0.02")],
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
    model, optimizers = fresh()
    checkpoints.save(1, model, optimizers, record(1, 1), best={"step": 1})
    checkpoints.settle()
    damage(checkpoints.folder / "best-00000001" / "state.safetensors")
    assert checkpoints.best() is None


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("state.safetensors", truncate, "cut short or was changed"),
        ("state.safetensors", remove, "state.safetensors is missing"),
        ("state.json", truncate, "state.json is cut short"),
    ],
)
def test_a_damaged_one_that_is_passed_over_is_said(tmp_path, name, damage, told):
    said = []
    checkpoints = Checkpoints(tmp_path / "c", 2, said.append)
    save_steps(checkpoints, [1, 2])
    assert checkpoints.latest()[1]["step"] == 2
    assert said == []
    damage(checkpoints.folder / "step-00000002" / name)
    assert checkpoints.latest()[1]["step"] == 1
    (line,) = said
    assert "step-00000002" in line
    assert told in line


def test_what_is_saved_is_the_state_of_then_while_training_goes_on(tmp_path, monkeypatch):
    slow, real = threading.Event(), durable.write

    def write(*arguments):
        slow.wait(10)
        real(*arguments)

    monkeypatch.setattr(durable, "write", write)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model, optimizers = fresh()
    step(model, optimizers, 1)
    wanted = {key: tensor.clone() for key, tensor in pack(model, optimizers)[0].items()}
    began = time.perf_counter()
    checkpoints.save(1, model, optimizers, record(1))
    checkpoints.copied()
    step(model, optimizers, 2)
    checkpoints.settle(wait=False)
    assert time.perf_counter() - began < 5, "training waited for the disk"
    slow.set()
    tensors, _ = checkpoints.latest()
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    held = [buffer.data_ptr() for buffer in checkpoints._buffers.values()]
    checkpoints.save(2, model, optimizers, record(2))
    assert [buffer.data_ptr() for buffer in checkpoints._buffers.values()] == held
    assert_latest(checkpoints, 2, {2: model.head.bias})
    checkpoints.close()


def test_what_a_forward_pass_changes_is_copied_at_once(tmp_path, monkeypatch):
    slow, real = threading.Event(), checkpoint._copy

    def copy(tensors, buffers, keys):
        if threading.current_thread() is not threading.main_thread():
            slow.wait(10)
        real(tensors, buffers, keys)

    monkeypatch.setattr(checkpoint, "_copy", copy)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    checkpoints.save(1, model, [], record(1))
    wanted = model[1].running_mean.clone()
    model(torch.randn(8, 3))
    assert not torch.equal(model[1].running_mean, wanted)
    slow.set()
    checkpoints.copied()
    assert torch.equal(checkpoints.latest()[0]["model.1.running_mean"], wanted)
    checkpoints.close()


def test_where_memory_is_short_training_waits_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("danlu.train.checkpoint.free_memory", lambda: 4096)
    said = []
    checkpoints = Checkpoints(tmp_path / "c", 2, said.append)
    model, optimizers = fresh()
    for number in (1, 2):
        checkpoints.save(number, model, optimizers, record(number))
        assert (tmp_path / "c" / f"step-0000000{number}").is_dir(), "it is there at once"
    assert checkpoints._buffers == {}
    (line,) = said
    assert "memory is short" in line


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    save_steps(checkpoints, [1])
    model, optimizers = fresh()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    checkpoints.save(2, model, optimizers, record(2))
    with pytest.raises(DivergedError, match=r"no longer finite \(head.bias\)"):
        checkpoints.settle()
    assert checkpoints.latest()[1]["step"] == 1


def test_too_small_a_disk_is_told_before_training(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.reserve(10**6)
    with pytest.raises(MachineError, match=r"need 1000000\.00 GB, and the disk has") as caught:
        checkpoints.reserve(10**15)
    assert "keep_checkpoints" in caught.value.mend


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_room_that_is_asked_for_is_the_room_that_is_taken(tmp_path, optimizer, average):
    config = BackboneConfig(**CONFIG.to_dict() | {"dim": 64, "hidden_dim": 256, "vocab_size": 500})
    model = build_model(config, "masked")
    settings = Training(optimizer=optimizer, learning_rate=0.1, average=average)
    optimizers, kept = optim.build(model, settings), Average(model, average)
    step(model, optimizers, 1)
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(1, model, optimizers, record(1, 1), kept, best={"step": 1})
    checkpoints.settle()
    taken = {p.parent.name[:4]: p.stat().st_size for p in tmp_path.rglob("*.safetensors")}
    assert taken["step"] == pytest.approx(room.state_bytes(model, settings), rel=0.02)
    assert taken["best"] == pytest.approx(room.weight_bytes(model), rel=0.02)


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
