"""The network for images against its equations, pixel by pixel, and what it is wired to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import agree

from danlu.batch import Batch
from danlu.data.image import ImageDocuments, ImageEncoder
from danlu.model import flops
from danlu.model.classic import ClassicConfig
from danlu.model.convnet import ConvNet
from danlu.model.heads import build, read_config
from tolerances import SIMPLE

SHAPE = (6, 5, 2)


def encoder(height=6, width=5, channels=1):
    return ImageEncoder(height, width, channels, whole=True, mean=(0.3,) * channels,
                        std=(0.2,) * channels)  # fmt: skip


def config(spec, **others):
    fields = {"num_layers": 2, "dim": 8, "hidden_dim": 8, "norm": "batch"} | others
    return ClassicConfig(
        "cnn", spec.vocab_size, **fields, value_dims=spec.value_dims, value_ids=spec.value_ids,
        value_shape=spec.value_shape,
    )  # fmt: skip


def reference(values, weights, shape, norm, epsilon):
    """Two stages in float64, one image, one pixel and one filter at a time."""
    x_UHWC = values.reshape(-1, *shape)
    for stage in range(2):
        if stage:
            rows = [
                x_UHWC[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((1, 2))
                for i in range(x_UHWC.shape[1] // 2)
                for j in range(x_UHWC.shape[2] // 2)
            ]
            x_UHWC = torch.stack(rows, 1).reshape(
                len(x_UHWC), x_UHWC.shape[1] // 2, x_UHWC.shape[2] // 2, -1)  # fmt: skip
        _, height, width, _ = x_UHWC.shape
        filters = weights[f"filters.{stage}.weight"]
        pixels = []
        for i in range(height):
            for j in range(width):
                total = torch.zeros(len(x_UHWC), len(filters), dtype=torch.float64)
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            seen = x_UHWC[:, i + di, j + dj]
                            total = total + seen @ filters[:, :, di + 1, dj + 1].T
                pixels.append(total + weights.get(f"filters.{stage}.bias", 0.0))
        x_UHWC = torch.stack(pixels, 1).reshape(len(x_UHWC), height, width, -1)
        if norm == "batch":
            flat = x_UHWC.reshape(-1, x_UHWC.shape[-1])
            spread = torch.sqrt(((flat - flat.mean(0)) ** 2).mean(0) + 1e-5)
            x_UHWC = (x_UHWC - flat.mean(0)) / spread
        elif norm == "layer":
            away = x_UHWC - x_UHWC.mean(-1, keepdim=True)
            x_UHWC = away / torch.sqrt((away**2).mean(-1, keepdim=True) + epsilon)
        elif norm == "rms":
            x_UHWC = x_UHWC / torch.sqrt((x_UHWC**2).mean(-1, keepdim=True) + epsilon)
        name = f"norms.{stage}." + ("norm." if norm in ("layer", "rms") else "")
        x_UHWC = x_UHWC * weights.get(f"{name}weight", 1.0) + weights.get(f"{name}bias", 0.0)
        x_UHWC = x_UHWC.clamp(min=0)
    # The matrix reads channel by channel.
    outputs = [weights["out.weight"] @ image.movedim(-1, 0).reshape(-1) for image in x_UHWC]
    return torch.stack(outputs) + weights["out.bias"]


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
def test_it_follows_its_equations(norm):
    torch.manual_seed(1)
    net = ConvNet(SHAPE, 2, 8, norm_kind=norm)
    names = [name for name, _ in net.named_parameters()]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)

    def ours(values, *given):
        return torch.func.functional_call(net, dict(zip(names, given, strict=True)), (values,))

    def theirs(values, *given):
        return reference(values, dict(zip(names, given, strict=True)), SHAPE, norm, 1e-6)

    agree(ours, theirs, torch.randn(3, 60), *net.parameters())


def test_it_sees_an_image_as_the_encoder_lays_it():
    """Height, width, channels: a filter that takes one corner's blue finds it there."""
    made = encoder(channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
    values = ImageDocuments(images, made).lay(np.arange(2)).values_UK
    net = ConvNet(made.spec.value_shape, 1, 1, norm_kind="none").eval()
    with torch.no_grad():
        net.filters[0].weight.zero_()[0, 2, 1, 1] = 1.0
        net.filters[0].bias.fill_(100.0)  # all that remains is positive
        net.out.weight.zero_()[0, 1 * 5 + 4] = 1.0  # row 1, column 4
    wanted = (images[:, 1, 4, 2] / 255 - 0.3) / 0.2 + 100
    np.testing.assert_allclose(net(values)[:, 0].detach().numpy(), wanted, rtol=SIMPLE)


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
def test_an_answer_does_not_depend_on_what_it_is_computed_with(norm):
    made = encoder()
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 1), np.uint8)
    documents = ImageDocuments(images, made)
    torch.manual_seed(0)
    model = build(config(made.spec, norm=norm), "classify", 3)
    torch.nn.init.normal_(model.head.output.weight)
    model.train()
    before = model(documents.lay(np.arange(7)))
    model(documents.lay(np.arange(7)))  # the running statistics move
    model.eval()
    together = model(documents.lay(np.arange(7)))
    alone = torch.cat([model(documents.lay(np.array([n]))) for n in range(7)])
    torch.testing.assert_close(together, alone, rtol=SIMPLE, atol=SIMPLE)
    assert torch.allclose(before, together) is (norm != "batch")


def test_it_learns_where_something_stands():
    """A bright pixel left or right: a bag of pixels could not tell."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (64, 6, 6, 1), np.uint8)
    label = generator.integers(0, 2, 64)
    images[
        np.arange(64), generator.integers(0, 6, 64), 3 * label + generator.integers(0, 3, 64)
    ] = 255
    made = encoder(6, 6)
    batch = ImageDocuments(images, made).lay(np.arange(64))
    torch.manual_seed(0)
    model = build(config(made.spec), "classify", 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(batch), torch.from_numpy(label))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model.eval()(batch).argmax(1).numpy() == label
    assert right.mean() > 0.95


def test_a_large_image_is_averaged_down_so_that_the_matrix_stays_small():
    net = ConvNet((64, 40, 3), 2, 8)
    assert net.out.in_features == 7 * 7 * 8
    assert net(torch.randn(2, 64 * 40 * 3)).shape == (2, 8)
    assert ConvNet((28, 28, 1), 3, 96).filters[0].out_channels == 24


@pytest.mark.parametrize(("shape", "stages"), [((6, 3, 1), 3), ((1, 9, 1), 2)])
def test_an_image_halved_to_nothing_is_refused(shape, stages):
    with pytest.raises(ValueError, match="nothing left"):
        ConvNet(shape, stages, 8)


def test_its_configuration_goes_round_through_json():
    import json

    made = config(encoder().spec)
    again = read_config(json.loads(json.dumps(made.to_dict())))
    assert again == made
    build(again, "classify", 3).load_state_dict(build(made, "classify", 3).state_dict())


@pytest.mark.parametrize(("kind", "dims"), [("mlp", 30), ("cnn", 31)])
def test_a_shape_that_does_not_fit_is_refused(kind, dims):
    with pytest.raises(ValueError, match="value_shape is for a cnn"):
        ClassicConfig(kind, 6, 1, 8, 8, value_dims=dims, value_ids=1, value_shape=(6, 5, 1))


def test_useful_operations_are_those_of_its_filters_and_matrices():
    made = encoder()
    batch: Batch = ImageDocuments(np.zeros((3, 6, 5, 1), np.uint8), made).lay(np.arange(3))
    model = build(config(made.spec), "classify", num_outputs=2)
    stages = 9 * (1 * 4) * 6 * 5 + 9 * (4 * 8) * 3 * 2
    out, head = 3 * 2 * 8 * 8, 3 * model.head.score.weight.numel() + 3 * 2 * 8
    assert flops.useful(model, batch) == 6 * (3 * (stages + out) + head)
