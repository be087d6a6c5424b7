"""Muon against float64: singular value decompositions, and the formula of its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.checkpoint import Checkpoints, unpack
from danlu.train.muon import Muon
from small import computing
from tolerances import BFLOAT16, POLAR, SIMPLE

RATE, MOMENTUM = 0.02, 0.95
# Of the first steps; Amsel et al., "The Polar Express", 2025, for singular values from 0.001.
PAPER = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Wide, tall, square, alike but turned, with widths that the kernels take and not.
SHAPES = [(16, 48), (48, 16), (32, 32), (48, 16), (5, 12), (12, 5), (7, 7), (1, 9), (64, 256)]


def apart(x):
    """Return U and V^T of a matrix."""
    left, _, right = np.linalg.svd(x, full_matrices=False)
    return left, right


def composed(singular, safe):
    """What the polynomials make of singular values that are at most 1."""
    for number, (a, b, c) in enumerate(PAPER):
        s = 1.01 if safe and number < len(PAPER) - 1 else 1.0
        singular = a / s * singular + b / s**3 * singular**3 + c / s**5 * singular**5
    return singular


def exact(x):
    """Return U f(S) V^T in float64, f being the polynomials of the paper."""
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    return left * composed(singular / (1.01 * np.linalg.norm(x)), safe=True) @ right


def well_conditioned(shape, seed=0):
    """Return a matrix whose singular values lie between 1 and 3."""
    generator = np.random.default_rng(seed)
    left, right = apart(generator.standard_normal(shape))
    return left * np.linspace(1, 3, min(shape)) @ right


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give(matrices, gradients):
    for matrix, gradient in zip(matrices, gradients, strict=True):
        matrix.grad = torch.as_tensor(gradient, dtype=torch.float32).clone()


def drawn(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def values(matrices):
    return [matrix.detach().double().numpy().copy() for matrix in matrices]


def directions(before, after):
    """Return the steps taken, in units of what their size is to be."""
    return [
        (old - new) / (RATE * 0.2 * math.sqrt(max(old.shape)))
        for old, new in zip(before, after, strict=True)
    ]


def test_the_tolerance_is_that_of_the_polynomials_in_exact_arithmetic():
    singular = np.geomspace(1e-3, 1, 100_001)
    worst = abs(composed(singular, safe=False) - 1).max()
    assert worst == pytest.approx(POLAR - BFLOAT16, abs=1e-4)


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_step_goes_along_the_nearest_orthogonal_matrix(shape, size, with_kernels):
    matrices, gradient = parameters([shape]), well_conditioned(shape) * size
    before = values(matrices)
    muon = Muon(matrices, RATE, MOMENTUM)
    give(matrices, [gradient])
    with computing(with_kernels=with_kernels):
        muon.step()
    (found,) = directions(before, values(matrices))
    left, right = apart(gradient)
    assert abs(np.linalg.svd(found, compute_uv=False)[: min(shape)] - 1).max() < POLAR
    assert np.linalg.norm(found - left @ right, 2) < POLAR


def test_small_singular_values_are_lifted_to_the_others():
    # Between the largest and the smallest lie two orders of magnitude.
    left, right = apart(np.random.default_rng(0).standard_normal((48, 48)))
    gradient = left * np.geomspace(1, 0.01, 48) @ right
    matrices = parameters([(48, 48)])
    before = values(matrices)
    give(matrices, [gradient])
    Muon(matrices, RATE, MOMENTUM).step()
    (found,) = directions(before, values(matrices))
    assert abs(np.diag(left.T @ found @ right.T) - 1).max() < POLAR


def by_hand(weights, gradients, decay=0.0, nesterov=True):
    """Take the paper's steps in float64; return also the momentum, and how far they led."""
    speed, way = [np.zeros_like(weight) for weight in weights], [0.0] * len(weights)
    for step in gradients:
        for number, gradient in enumerate(step):
            gradient = np.asarray(gradient, np.float64)
            speed[number] = MOMENTUM * speed[number] + (1 - MOMENTUM) * gradient
            ahead = speed[number]
            if nesterov:
                ahead = MOMENTUM * ahead + (1 - MOMENTUM) * gradient
            step_taken = RATE * 0.2 * math.sqrt(max(ahead.shape)) * exact(ahead)
            weights[number] = weights[number] * (1 - RATE * decay) - step_taken
            way[number] += abs(step_taken).max()
    return weights, speed, way


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_steps_follow_the_formula(decay, with_kernels):
    shapes = [(16, 48), (48, 16), (5, 12)]
    gradients = [[well_conditioned(s, 10 * n + k) for k, s in enumerate(shapes)] for n in range(4)]
    matrices = parameters(shapes)
    before = values(matrices)
    muon = Muon(matrices, RATE, MOMENTUM, decay)
    with computing(with_kernels=with_kernels):
        for step in gradients:
            give(matrices, step)
            muon.step()
    after, speed, way = by_hand(list(before), gradients, decay)
    plain, _, _ = by_hand(list(before), gradients, decay, nesterov=False)
    for number, matrix in enumerate(matrices):
        off = abs(values([matrix])[0] - after[number]).max()
        assert off < BFLOAT16 * way[number]
        assert abs(plain[number] - after[number]).max() > 2 * off  # without Nesterov: elsewhere
        found = muon.state[matrix]["momentum_buffer"].double().numpy()
        np.testing.assert_allclose(found, speed[number], rtol=SIMPLE, atol=SIMPLE)


def test_without_a_gradient_to_follow_there_is_only_decay():
    matrices = parameters(SHAPES)
    before = values(matrices)
    give(matrices, [torch.zeros(shape) for shape in SHAPES])
    Muon(matrices, RATE, MOMENTUM, weight_decay=0.5).step()
    for old, new in zip(before, values(matrices), strict=True):
        np.testing.assert_allclose(new, old * (1 - RATE * 0.5), rtol=SIMPLE, atol=SIMPLE)


def test_a_matrix_without_a_gradient_stays_as_it_is():
    matrices = parameters([(16, 48), (16, 48)])
    before = values(matrices)
    matrices[0].grad = torch.randn(16, 48)
    Muon(matrices, RATE, MOMENTUM, weight_decay=0.5).step()
    assert not np.array_equal(values(matrices)[0], before[0])
    assert np.array_equal(values(matrices)[1], before[1])


def run(matrices, gradients, scale=None, **others):
    muon = Muon(matrices, RATE, MOMENTUM, **others)
    for step in gradients:
        give(matrices, step)
        muon.grad_scale = scale
        muon.step()
    return muon


@pytest.mark.parametrize("scale", [2.0, 0.25, 3.7])
def test_grad_scale_divides_as_if_the_gradients_had_been_divided(scale):
    gradients = [drawn(SHAPES, seed) for seed in range(3)]
    one, other = parameters(SHAPES), parameters(SHAPES)
    before = values(one)
    first = run(one, gradients, torch.tensor(scale), weight_decay=0.1)
    second = run(other, [[g / scale for g in step] for step in gradients], weight_decay=0.1)
    for mine, theirs, start in zip(one, other, before, strict=True):
        buffers = [o.state[p]["momentum_buffer"] for o, p in ((first, mine), (second, theirs))]
        torch.testing.assert_close(*buffers, rtol=SIMPLE, atol=SIMPLE)
        if math.log2(scale).is_integer():  # nothing is rounded
            assert torch.equal(mine, theirs)
        off = float((mine - theirs).detach().abs().max())
        assert off < BFLOAT16 * abs(values([theirs])[0] - start).max()


@pytest.mark.parametrize("with_kernels", [True, False])
def test_matrices_taken_together_step_as_each_alone(with_kernels):
    gradients = [drawn(SHAPES, seed) for seed in range(3)]
    together, alone = parameters(SHAPES), parameters(SHAPES)
    before = values(together)
    with computing(with_kernels=with_kernels):
        run(together, gradients, weight_decay=0.1)
        for number, matrix in enumerate(alone):
            run([matrix], [[step[number]] for step in gradients], weight_decay=0.1)
    for mine, theirs, start in zip(together, alone, before, strict=True):
        moved = abs(values([theirs])[0] - start).max()
        assert float((mine - theirs).detach().abs().max()) < BFLOAT16 * moved


def test_a_matrix_and_its_transpose_step_alike():
    gradients = [drawn(SHAPES, seed) for seed in range(3)]
    upright, turned = parameters(SHAPES), parameters(SHAPES)
    turned = [nn.Parameter(matrix.detach().mT.clone()) for matrix in turned]
    run(upright, gradients)
    run(turned, [[g.mT for g in step] for step in gradients])
    for mine, theirs in zip(upright, turned, strict=True):
        if mine.shape[0] != mine.shape[1]:  # of a square one no side is the shorter
            assert torch.equal(mine, theirs.mT)


class Layered(nn.Module):
    """Matrices and a vector, as a backbone has them."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(b, a, bias=n == 0) for n, (a, b) in enumerate(SHAPES))


def built(net):
    return optim.build(net, Training(optimizer="muon", learning_rate=RATE))


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    def steps(net, optimizers, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optim.step(optimizers, clip=1.0, rate=RATE / (1 + seed))

    whole, first = Layered(1), Layered(1)
    steps(whole, built(whole), range(6))
    optimizers = built(first)
    steps(first, optimizers, range(3))
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(3, first, optimizers, {"step": 3})
    tensors, record = checkpoints.latest()
    resumed = Layered(2)
    optimizers = built(resumed)
    unpack(tensors, record["groups"], resumed, optimizers)
    assert any(isinstance(one, Muon) for one in optimizers)
    steps(resumed, optimizers, range(3, 6))
    for mine, wanted in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_a_closure_is_refused():
    with pytest.raises(AssertionError, match="closure"):
        Muon(parameters([(4, 4)]), RATE).step(lambda: 0.0)
