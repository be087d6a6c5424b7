"""Optimisers against hand-written ones, and the schedules at their borders."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from danlu.model.heads import build as build_model
from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.muon import Muon
from tolerances import BFLOAT16, POLAR, SIMPLE

CONFIG = BackboneConfig(
    vocab_size=11, num_layers=2, dim=8, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=12
)
KINDS = ["masked", "causal", "classify"]


def fresh(kind="classify"):
    """A model without a parameter that is zero, so that decay shows everywhere."""
    torch.manual_seed(0)
    model = build_model(CONFIG, kind, num_outputs=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def steps(model, optimizers, count):
    """Take steps along random gradients; return those gradients, by parameter."""
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(count):
        drawn = {}
        for name, parameter in model.named_parameters():
            drawn[name] = torch.randn(parameter.shape, generator=generator)
            parameter.grad = drawn[name].clone()
        gradients.append({name: gradient.double().numpy() for name, gradient in drawn.items()})
        for optimizer in optimizers:
            optimizer.step()
    return gradients


def values(model):
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


def assert_close(model, wanted):
    for name, value in values(model).items():
        np.testing.assert_allclose(value, wanted[name], rtol=SIMPLE, atol=SIMPLE, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_takes_the_steps_of_its_papers_and_decays_matrices_only(weight_decay, optimizer):
    rate, (first, second), epsilon = 0.03, (0.8, 0.95), 1e-8
    chosen = Training(
        optimizer=optimizer, learning_rate=rate, betas=(first, second), weight_decay=weight_decay
    )
    model = fresh()
    wanted = values(model)
    gradients = steps(model, optim.build(model, chosen), 6)
    for name, weight in wanted.items():
        mean, square = np.zeros_like(weight), np.zeros_like(weight)
        decay = weight_decay if weight.ndim > 1 else 0.0
        for number, drawn in enumerate(gradients, start=1):
            # Adam's decay is a part of the gradient, AdamW's shrinks the weights beside it.
            gradient = drawn[name] + (decay * weight if optimizer == "adam" else 0.0)
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient**2
            ahead, spread = mean / (1 - first**number), square / (1 - second**number)
            if optimizer == "adamw":
                weight = weight - rate * decay * weight
            weight = weight - rate * ahead / (np.sqrt(spread) + epsilon)
        wanted[name] = weight
    assert_close(model, wanted)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_its_steps_with_momentum(momentum):
    rate = 0.05
    chosen = Training(optimizer="sgd", learning_rate=rate, momentum=momentum, weight_decay=0)
    model = fresh()
    wanted = values(model)
    gradients = steps(model, optim.build(model, chosen), 6)
    for name in wanted:
        speed = np.zeros_like(wanted[name])
        for drawn in gradients:
            speed = momentum * speed + drawn[name]
            wanted[name] = wanted[name] - rate * speed
    assert_close(model, wanted)


def test_the_decay_of_sgd_is_decoupled_as_the_recipe_says():
    # "Decoupled, on matrices only" (Training.weight_decay): with SGD a matrix
    # shrinks by rate × decay, and momentum never sees the decay (SGDW).
    rate, momentum, weight_decay = 0.05, 0.9, 0.3
    chosen = Training(
        optimizer="sgd", learning_rate=rate, momentum=momentum, weight_decay=weight_decay
    )
    model = fresh()
    wanted = values(model)
    gradients = steps(model, optim.build(model, chosen), 6)
    for name in wanted:
        speed = np.zeros_like(wanted[name])
        for drawn in gradients:
            speed = momentum * speed + drawn[name]
            if wanted[name].ndim > 1:
                wanted[name] = wanted[name] * (1 - rate * weight_decay)
            wanted[name] = wanted[name] - rate * speed
    assert_close(model, wanted)


def test_muon_steps_along_the_nearest_orthogonal_matrix_at_the_size_of_adamw():
    rate = 0.02
    model = fresh()
    before = values(model)
    chosen = Training(optimizer="muon", learning_rate=rate, weight_decay=0)
    gradients = steps(model, optim.build(model, chosen), 1)
    for name, value in values(model).items():
        if ".layers." in name and value.ndim == 2:
            step = (before[name] - value) / (rate * 0.2 * math.sqrt(max(value.shape)))
            left, _, right = np.linalg.svd(gradients[0][name], full_matrices=False)
            assert abs(np.diag(left.T @ step @ right.T) - 1).max() < POLAR


def state_of(optimizers):
    return [
        value.clone()
        for one in optimizers
        for slots in one.state.values()
        for value in slots.values()
        if isinstance(value, torch.Tensor)
    ]


def give(model, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


OPTIMIZERS = ["adam", "adamw", "sgd", "muon"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.3, 5.0, 1e6])
def test_a_clipped_step_is_that_of_torch_clipping_first(optimizer, clip):
    rate = 2e-3
    chosen = Training(optimizer=optimizer, learning_rate=0.5, weight_decay=0.3)
    one, other = fresh(), fresh()
    before = values(one)
    ours, theirs = optim.build(one, chosen), optim.build(other, chosen)
    for seed in range(5):
        size = 10.0 ** (seed - 3)  # some are clipped, some are not
        give(one, seed, size)
        give(other, seed, size)
        norm = optim.step(ours, clip, rate)
        if clip:
            wanted = torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
        else:
            wanted = torch.nn.utils.get_total_norm([p.grad for p in other.parameters()])
        for built in theirs:
            for group in built.param_groups:
                group["lr"] = rate
            built.step()
        assert norm == pytest.approx(float(wanted), rel=SIMPLE)
        assert all(parameter.grad is None for parameter in one.parameters())
        expected = values(other)
        for name, value in values(one).items():
            # Muon's direction is worked out in bfloat16: a step may differ by its rounding.
            coarse = optimizer == "muon" and ".layers." in name and value.ndim == 2
            way = (seed + 1) * rate * 0.2 * math.sqrt(max(value.shape))
            bound = BFLOAT16 * way if coarse else SIMPLE
            assert abs(value - expected[name]).max() < bound + SIMPLE * abs(value).max(), name
        for mine, kept in zip(state_of(ours), state_of(theirs), strict=True):
            torch.testing.assert_close(mine, kept, rtol=SIMPLE, atol=SIMPLE)
    moved = [abs(value - before[name]).max() for name, value in values(one).items()]
    assert min(moved) > 10 * SIMPLE


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_without_clipping_after_a_clipped_one_is_not_clipped(optimizer):
    chosen = Training(optimizer=optimizer, learning_rate=0.01)
    one, other = fresh(), fresh()
    ours, theirs = optim.build(one, chosen), optim.build(other, chosen)
    for model, built in ((one, ours), (other, theirs)):
        give(model, 1, 100.0)
        optim.step(built, clip=1.0, rate=0.0)
        give(model, 2, 100.0)
    optim.step(ours, clip=0.0, rate=0.01)
    for built in theirs:
        built.grad_scale = None
        for group in built.param_groups:
            group["lr"] = 0.01
        built.step()
    for mine, wanted in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_whose_norm_is_no_number_takes_no_step(optimizer, clip, value):
    model = fresh()
    optimizers = optim.build(model, Training(optimizer=optimizer, learning_rate=0.1))
    give(model, 1)
    optim.step(optimizers, clip, 0.1)
    before, state = values(model), state_of(optimizers)
    give(model, 2)
    model.head.output.weight.grad[0, 0] = value
    assert not math.isfinite(optim.step(optimizers, clip, 0.1))
    for name, weight in values(model).items():
        assert np.array_equal(weight, before[name]), name
    assert all(map(torch.equal, state_of(optimizers), state))


def test_a_parameter_without_a_gradient_stays_and_counts_for_nothing():
    model = fresh()
    optimizers = optim.build(model, Training(optimizer="adamw", learning_rate=0.1))
    give(model, 1)
    model.head.output.bias.grad = None
    wanted = math.sqrt(
        sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None)
    )
    before = model.head.output.bias.detach().clone()
    assert optim.step(optimizers, 1.0, 0.1) == pytest.approx(wanted, rel=SIMPLE)
    assert torch.equal(model.head.output.bias, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("backbone", ["tied", "untied", "lstm", "cnn", "linear"])
def test_every_parameter_is_owned_once(optimizer, kind, backbone):
    config = BackboneConfig(**CONFIG.to_dict() | {"tie_embeddings": backbone == "tied"})
    if "tied" not in backbone:
        config = ClassicConfig(backbone, vocab_size=11, num_layers=2, dim=8, hidden_dim=6)
    model = build_model(config, kind, num_outputs=3)
    chosen = Training(optimizer=optimizer, learning_rate=0.1, weight_decay=0.2)
    groups = [g for one in optim.build(model, chosen) for g in one.param_groups]
    owned = [id(p) for group in groups for p in group["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in model.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_muon_owns_just_the_matrices_of_the_layers(kind):
    model = build_model(CONFIG, kind, num_outputs=3)
    built = optim.build(model, Training(optimizer="muon", learning_rate=0.1))
    (muon,) = [one for one in built if isinstance(one, Muon)]
    owned = {id(p) for group in muon.param_groups for p in group["params"]}
    wanted = {
        id(p)
        for n, p in model.named_parameters()
        if n.startswith("backbone.layers.") and p.ndim == 2
    }
    assert owned == wanted
    assert len(wanted) == 2 * 7


@st.composite
def schedules(draw):
    total = draw(st.integers(1, 3000))
    return total, draw(st.floats(0, 0.99)), draw(st.sampled_from(["cosine", "linear", "constant"]))


@given(schedules(), st.data())
@settings(deadline=None, max_examples=300)
def test_the_rate_is_a_share_of_the_peak_and_is_never_zero(schedule, data):
    total, warmup, kind = schedule
    step = data.draw(st.integers(0, total - 1))
    assert 0 < optim.rate_factor(step, total, warmup, kind) <= 1


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_the_rate_rises_to_the_peak_and_never_again(schedule):
    total, warmup, kind = schedule
    rates = [optim.rate_factor(step, total, warmup, kind) for step in range(total)]
    top = rates.index(1.0)
    rise, fall = np.diff(rates[: top + 1]), np.diff(rates[top:])
    assert (rise > 0).all()
    assert (fall <= 0).all()
    assert abs(top - max(0, warmup * total - 1)) <= 1
    np.testing.assert_allclose(rise, rates[0], rtol=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_schedules_agree_with_their_formulas_after_the_warm_up(kind):
    total, rising = 50, 10
    for step in range(rising, total):
        share = (step - rising) / (total - rising)
        wanted = {
            "cosine": math.cos(math.pi * share / 2) ** 2,
            "linear": (total - step) / (total - rising),
            "constant": 1.0,
        }[kind]
        found = optim.rate_factor(step, total, 0.2, kind)
        assert found == pytest.approx(wanted, rel=SIMPLE)
    assert optim.rate_factor(0, total, 0.2, kind) == pytest.approx(0.1)
    assert optim.rate_factor(rising - 1, total, 0.2, kind) == 1
    assert optim.rate_factor(rising, total, 0.2, kind) == 1


@pytest.mark.parametrize(("warmup", "total", "rising"), [(0.07, 100, 7), (0.14, 50, 7)])
def test_a_warm_up_of_whole_steps_is_not_lengthened_by_rounding(warmup, total, rising):
    assert optim.rate_factor(rising - 1, total, warmup, "linear") == 1


def test_a_rate_that_was_not_filled_in_is_refused():
    with pytest.raises(AssertionError, match="has not been filled"):
        optim.build(fresh(), Training())
