"""Classic backbones against their equations in float64, and what no backbone may do."""

import pytest
import torch
from references import agree, near, place

from danlu.batch import Batch
from danlu.model import flops
from danlu.model.classic import Classic, ClassicConfig
from danlu.model.heads import build, read_config
from tolerances import BFLOAT16, COMPOSED, SIMPLE

KINDS = ["linear", "cnn", "lstm", "gru"]
CASES = [(kind, False) for kind in KINDS] + [("lstm", True), ("gru", True)]


def draw(kind, causal=False, **others):
    fields = {"vocab_size": 40, "num_layers": 2, "dim": 6, "hidden_dim": 5, "causal": causal}
    torch.manual_seed(3)
    made = Classic(ClassicConfig(kind, **fields | others))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def alone(backbone, ids):
    ids = ids[None]
    return backbone(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))[0]


@pytest.mark.parametrize(("kind", "causal"), CASES)
def test_packed_documents_are_as_if_each_were_alone(kind, causal):
    rows = [(7, 13, 1), (20, 3), (4,)]
    position, document = place(rows)
    ids = torch.randint(4, 40, document.shape)
    backbone = draw(kind, causal)
    packed = backbone(ids, position, document)
    weights = list(backbone.parameters())
    direction = torch.randn(packed.shape) * (document >= 0).unsqueeze(-1)
    found = torch.autograd.grad(packed, weights, direction)
    wanted = [torch.zeros_like(weight) for weight in weights]
    for number in range(6):
        own = document == number
        hidden = alone(backbone, ids[own])
        torch.testing.assert_close(packed[own], hidden, rtol=SIMPLE, atol=SIMPLE)
        for total, part in zip(
            wanted, torch.autograd.grad(hidden, weights, direction[own]), strict=True
        ):
            total += part
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=COMPOSED, atol=COMPOSED)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_what_reads_forwards_only_does_not_see_what_comes(kind):
    ids = torch.randint(4, 40, (12,))
    for causal in (True, False):
        backbone = draw(kind, causal)
        before = alone(backbone, ids)
        ids[8] = 4 + (ids[8] - 3) % 36
        after = alone(backbone, ids)
        assert torch.equal(before[:8], after[:8]) is causal
        assert not torch.equal(before[8:], after[8:])


def reference_recurrence(kind, weights, x_LD, backwards=False):
    """One direction of one layer, a position at a time, from the papers' equations."""
    end = "_reverse" if backwards else ""
    w, u, b, c = (
        weights[f"cell.{n}_l0{end}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = cell = torch.zeros(u.shape[1], dtype=torch.float64)
    out = []
    for x in x_LD.flip(0) if backwards else x_LD:
        ours, theirs = w @ x + b, u @ hidden + c
        if kind == "lstm":
            i, f, g, o = (ours + theirs).chunk(4)
            cell = cell / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
            hidden = torch.tanh(cell) / (1 + torch.exp(-o))
        else:
            (r, z, n), (r2, z2, n2) = ours.chunk(3), theirs.chunk(3)
            z = 1 / (1 + torch.exp(-z - z2))
            new = torch.tanh(n + n2 / (1 + torch.exp(-r - r2)))
            hidden = z * hidden + (1 - z) * new
        out.append(hidden)
    return torch.stack(out[::-1] if backwards else out)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrence_follows_its_equations(kind, causal):
    (layer,) = draw(kind, causal, num_layers=1).layers
    names = list(layer.state_dict())

    def ours(x_LD, *weights):
        inside = torch.ones(1, len(x_LD), dtype=torch.bool)
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x_LD[None], inside))[0]

    def reference(x_LD, *weights):
        given = dict(zip(names, weights, strict=True))
        both = [
            reference_recurrence(kind, given, x_LD, way)
            for way in ([False] if causal else [False, True])
        ]
        return torch.cat(both, dim=-1) @ given["out.weight"].T

    agree(ours, reference, torch.randn(9, 6), *layer.state_dict().values())


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_convolution_follows_its_equation(activation, window):
    (layer,) = draw("cnn", num_layers=1, window=window, activation=activation).layers
    names = list(layer.state_dict())

    def ours(x_LD, *weights):
        inside = torch.ones(1, len(x_LD), dtype=torch.bool)
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x_LD[None], inside))[0]

    def reference(x_LD, scale, filter_, bias):
        normed = x_LD / torch.sqrt((x_LD**2).mean(-1, keepdim=True) + 1e-6) * scale
        rows = []
        for here in range(len(x_LD)):
            total = bias
            for k in range(window):
                there = here + k - window // 2
                if 0 <= there < len(x_LD):
                    total = total + filter_[:, :, k] @ normed[there]
            rows.append(total.clamp(min=0) if activation == "relu" else torch.tanh(total))
        return x_LD + torch.stack(rows)

    assert names == ["norm.weight", "filter.weight", "filter.bias"]
    agree(ours, reference, torch.randn(9, 6), *layer.state_dict().values())


@pytest.mark.parametrize(("kind", "causal"), CASES)
def test_bfloat16_computes_about_the_same(kind, causal):
    position, document = place([(7, 9), (16,)])
    ids = torch.randint(4, 40, document.shape)
    backbone = draw(kind, causal, dim=16, hidden_dim=16)
    weights = list(backbone.parameters())

    def run():
        out = backbone(ids, position, document)
        return out, torch.autograd.grad(out.float().sum(), weights)

    expected, wanted = run()
    with torch.autocast("cpu", torch.bfloat16):
        out, found = run()
    near(out.float(), expected, 3 * BFLOAT16)
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        near(gradient, wanted_gradient, 5 * BFLOAT16)


def test_dropout_leaves_the_residual_stream_of_a_cnn_whole():
    backbone = draw("cnn", dropout=0.9)
    (first, _), x = backbone.layers, torch.randn(1, 50, 6)
    changed = first(x, torch.ones(1, 50, dtype=torch.bool)) - x
    assert 0 < (changed != 0).float().mean() < 0.3
    assert torch.equal(backbone.eval()(*[torch.zeros(1, 5, dtype=torch.long)] * 3),
                       backbone(*[torch.zeros(1, 5, dtype=torch.long)] * 3))  # fmt: skip


def test_a_linear_backbone_is_a_bag_of_tokens():
    backbone = draw("linear")
    ids = torch.randint(4, 40, (12,))
    assert torch.equal(alone(backbone, ids), backbone.embedding.weight[ids])
    model = build(backbone.config, "classify", num_outputs=2)
    assert sum(p.numel() for p in model.backbone.parameters()) == 40 * 6


@pytest.mark.parametrize(("kind", "causal"), CASES)
def test_a_model_comes_back_from_its_configuration(kind, causal):
    config = draw(kind, causal).config
    again = read_config(config.to_dict())
    assert again == config
    build(again, "classify", 3).load_state_dict(build(config, "classify", 3).state_dict())


@pytest.mark.parametrize(
    ("kind", "others", "message"),
    [
        ("cnn", {"causal": True}, "cannot be causal"),
        ("cnn", {"window": 4}, "window must be odd"),
        ("lstm", {"hidden_dim": 0}, "hidden_dim must be positive"),
        ("cnn", {"activation": "swiglu"}, "activation must be one of"),
        ("rnn", {}, "kind must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, others, message):
    with pytest.raises(ValueError, match=message):
        draw(kind, **others)


def test_useful_operations_are_those_of_the_matrices():
    position, document = place([(3, 4), (2,)])
    batch = Batch(document.clamp(min=0), position, document, 3)
    model = build(draw("lstm", True, num_layers=1).config, "classify", num_outputs=2)
    cell, out = 4 * 5 * (6 + 5), 5 * 6
    head = 9 * model.head.score.weight.numel() + 3 * 2 * 6
    assert flops.useful(model, batch) == 6 * (9 * (cell + out) + head)
