"""A divided model equals the whole one: outputs, gradients of every layer, ten losses."""

import numpy as np
import pytest
import torch
from tests.parallel.ranks import together

from danlu.data.load import DocumentLoader, PackedLoader
from danlu.data.modality import BEGIN_ID, Spec
from danlu.data.text import Documents
from danlu.model.backbone import BRANCHES, SPLIT, BackboneConfig
from danlu.model.heads import build
from danlu.parallel.mesh import ALONE
from danlu.parallel.shard import divide, divided_as, own, plain_name, whole
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train import optim
from danlu.train.loop import forward_and_backward

CPU, VOCAB, STEPS, CLOSE = torch.device("cpu"), 48, 10, 1e-5
LAYOUTS = {"copies": (2, 1, 1), "shards": (2, 2, 1), "layers": (2, 1, 2), "both": (4, 2, 2)}


def documents():
    generator = np.random.default_rng(5)
    sizes = generator.integers(5, 16, 24)
    return Documents.of([
        np.array([BEGIN_ID, *generator.integers(4, VOCAB, size)], np.int32) for size in sizes
    ])  # fmt: skip


def lesson(kind, qk_norm=False):
    """A model with dropout, its objective, and batches in eight parts."""
    torch.manual_seed(3)
    config = BackboneConfig(
        vocab_size=VOCAB, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, head_dim=16,
        hidden_dim=64, causal=kind == "causal", qk_norm=qk_norm, dropout=0.1,
    )  # fmt: skip
    model = build(config, kind, num_outputs=3)
    if kind == "classify":
        torch.nn.init.normal_(model.head.output.weight)  # which begins at zero
        labels = torch.arange(24) % 3
        loader = DocumentLoader(documents(), labels, 16, 8, 1, Spec(VOCAB), 0.2)
        return model, objectives.classes(), loader
    loader = PackedLoader(documents(), 8, 32, 8, 1, kind, 0.3, Spec(VOCAB))
    return model, objectives.tokens(), loader


def ten_losses(kind, optimizer, mesh):
    model, objective, loader = lesson(kind)
    divide(model, mesh, SPLIT, BRANCHES)
    settings = Training(
        optimizer=optimizer, learning_rate=0.01, precision="float32", gradient_clip=0.5
    )
    optimizers = optim.build(model, settings)
    losses = []
    for step in range(STEPS):
        parts = loader.load(*divmod(step, loader.steps_per_epoch))
        loss = forward_and_backward(model, objective, parts, settings, CPU, number=step, mesh=mesh)
        norm = optim.step(optimizers, settings.gradient_clip, 0.01, l1=0.001)
        losses.append((loss, norm))
    weights = {plain_name(n): whole(p.detach()) for n, p in model.named_parameters()}
    return torch.tensor(losses), weights


def compare(mesh, folder):
    for kind in ("causal", "classify"):
        model, objective, loader = lesson(kind, qk_norm=True)
        alone, _, _ = lesson(kind, qk_norm=True)
        names = [name for name, _ in alone.named_parameters()]
        divide(model, mesh, SPLIT, BRANCHES)
        assert [plain_name(name) for name, _ in model.named_parameters()] == names
        parts, settings = loader.load(0, 0), Training(precision="float32")
        assert len(parts) == 8
        for part in parts:  # the outputs of every part, on every process
            for one in (model, alone):
                one.eval()
            said, expected = model(part), alone(part)
            if kind == "causal":
                said, expected = said.logits(), expected.logits()
            torch.testing.assert_close(said, expected, atol=CLOSE, rtol=CLOSE)
        one = forward_and_backward(model, objective, parts, settings, CPU, number=9, mesh=mesh)
        other = forward_and_backward(alone, objective, parts, settings, CPU, number=9)
        assert one == pytest.approx(other, abs=CLOSE)
        for (name, divided), expected in zip(
            model.named_parameters(), alone.parameters(), strict=True
        ):
            gradient = whole(divided.grad)
            torch.testing.assert_close(gradient, expected.grad, atol=CLOSE, rtol=CLOSE, msg=name)
            assert torch.equal(own(divided_as(gradient, divided)), own(divided.grad)), name
    for kind, optimizer in (("causal", "muon"), ("masked", "adamw"), ("classify", "sgd")):
        losses, weights = ten_losses(kind, optimizer, mesh)
        if mesh.first:
            torch.save((losses, weights), folder / f"{kind}-{optimizer}.pt")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_divided_model_equals_the_whole_one(layout, tmp_path):
    together(compare, *LAYOUTS[layout], tmp_path)
    for kind, optimizer in (("causal", "muon"), ("masked", "adamw"), ("classify", "sgd")):
        losses, weights = torch.load(tmp_path / f"{kind}-{optimizer}.pt")
        expected, whole_weights = ten_losses(kind, optimizer, ALONE)
        torch.testing.assert_close(losses, expected, atol=CLOSE, rtol=CLOSE)
        assert weights.keys() == whole_weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(
                weight, whole_weights[name], atol=1e-4, rtol=1e-4, msg=f"{optimizer}: {name}"
            )
