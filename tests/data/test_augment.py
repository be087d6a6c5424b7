"""Augmentation against Pillow and scipy, and that it does what it says: no more, no less."""

import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from danlu.data import augment
from danlu.data.augment import (
    ANGLE,
    LOG_SCALE,
    OPERATIONS,
    SHEAR_X,
    SHEAR_Y,
    SHIFT_X,
    SHIFT_Y,
    Augment,
    displacement,
    erase,
    matrices,
    warp,
)
from tolerances import COMPOSED, SIMPLE

SHAPE = (6, 3, 12, 17)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
IMAGES = torch.from_numpy(PIXELS / np.float32(255))
ALL = Augment(
    flip=True, rotate_degrees=20, scale=0.2, shift=0.1, shear=0.2, crop=2,
    elastic=1.0, erase=0.3, randaugment=2,
)  # fmt: skip


def generator(seed=1):
    return np.random.default_rng(seed)


def moves(n=1, **columns):
    all_ = np.zeros((n, 6))
    for name, value in columns.items():
        all_[:, getattr(augment, name)] = value
    return all_


def pictures(images):
    return [Image.fromarray(image) for image in np.asarray(images).transpose(0, 2, 3, 1)]


def test_nothing_is_changed_by_default():
    assert torch.equal(Augment()(IMAGES, generator()), IMAGES)


def test_half_of_the_images_are_flipped_as_pillow_flips():
    flipped = np.stack([np.asarray(ImageOps.mirror(p)) for p in pictures(PIXELS)])
    mirrored = torch.from_numpy(flipped.transpose(0, 3, 1, 2) / np.float32(255))
    many = Augment(flip=True)(IMAGES.repeat(200, 1, 1, 1), generator())
    left, right = IMAGES.repeat(200, 1, 1, 1), mirrored.repeat(200, 1, 1, 1)
    is_right = (many == right).flatten(1).all(1)
    assert ((many == left).flatten(1).all(1) ^ is_right).all()
    assert stats.binomtest(int(is_right.sum()), len(many)).pvalue > 0.001


@pytest.mark.parametrize(
    ("turns", "transpose"),
    [
        (1, Image.Transpose.ROTATE_90),
        (2, Image.Transpose.ROTATE_180),
        (3, Image.Transpose.ROTATE_270),
    ],
)
def test_quarter_turns_are_pillows(turns, transpose):
    square = PIXELS[..., :12]
    want = np.stack([np.asarray(p.transpose(transpose)) for p in pictures(square)])
    matrix = matrices(moves(len(square), ANGLE=turns * np.pi / 2))
    got = warp(torch.from_numpy(square / np.float32(255)), matrix)
    assert np.abs(got.numpy() - want.transpose(0, 3, 1, 2) / 255).max() < COMPOSED


@pytest.mark.parametrize("edges", ["black", "repeat"])
@pytest.mark.parametrize(("height", "width"), [(12, 17), (17, 12), (9, 9), (1, 5)])
def test_an_affine_warp_is_scipys(height, width, edges):
    random = generator(4)
    images = random.random((5, 2, height, width), np.float32)
    matrix = matrices(random.uniform(-0.4, 0.4, (5, 6)) * [1, 1, 1, 1, 5, 5])
    got = warp(torch.from_numpy(images), matrix, edges).numpy()
    centre = np.array([height - 1, width - 1]) / 2
    swap = np.array([[0, 1], [1, 0]])  # scipy's rows come first
    for image, result, map_ in zip(images, got, matrix, strict=True):
        linear, offset = swap @ map_[:, :2] @ swap, swap @ map_[:, 2]
        for channel, plane in zip(image, result, strict=True):
            want = ndimage.affine_transform(
                channel.astype(np.float64), linear, centre - linear @ centre + offset, order=1,
                mode="grid-constant" if edges == "black" else "nearest",
            )  # fmt: skip
            assert np.abs(plane - want).max() < COMPOSED


def test_moves_do_what_their_names_say():
    def place(**columns):
        """Where a point 10 to the right and 4 down goes: the map back must lead home."""
        [map_] = matrices(moves(**columns))
        return np.linalg.solve(map_[:, :2], np.array([10.0, 4.0]) - map_[:, 2])

    assert np.allclose(place(LOG_SCALE=np.log(2)), [20, 8])
    assert np.allclose(place(SHEAR_X=0.5), [12, 4])
    assert np.allclose(place(SHEAR_Y=0.5), [10, 9])
    assert np.allclose(place(SHIFT_X=3, SHIFT_Y=-1), [13, 3])
    assert np.allclose(place(ANGLE=np.pi / 2), [4, -10])
    both = place(ANGLE=np.pi / 2, SHIFT_X=3, LOG_SCALE=np.log(2), SHEAR_X=0.5)
    assert np.allclose(both, [8 + 3, -24])  # sheared and scaled, then turned, then shifted


def test_an_image_is_not_moved_further_than_asked():
    asked = Augment(rotate_degrees=20, scale=0.25, shift=0.1, shear=0.2, crop=3)
    drawn = asked._moves(4000, 28, 40, generator())
    reach = np.array([np.deg2rad(20), np.log(1.25), 0.2, 0, 0.1 * 40 + 3, 0.1 * 28 + 3])
    furthest = np.abs(drawn).max(0)
    assert (furthest <= reach).all()
    assert (furthest[reach > 0] > 0.9 * reach[reach > 0]).all()
    assert np.abs(drawn.mean(0)).max() < 0.1 * reach.max()


def test_a_crop_moves_by_whole_pixels_and_by_each_as_often():
    image = torch.zeros(1, 1, 15, 15)
    image[..., 7, 7] = 1
    got = Augment(crop=2)(image.repeat(2000, 1, 1, 1), generator()).numpy()
    assert np.abs(got.sum((1, 2, 3)) - 1).max() < COMPOSED
    assert np.abs(got.max((1, 2, 3)) - 1).max() < COMPOSED
    row, column = np.unravel_index(got.reshape(2000, -1).argmax(1), (15, 15))
    counts = np.bincount((row - 5) * 5 + column - 5, minlength=25)
    assert len(counts) == 25
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("smoothness", [1.0, 4.0])
def test_elastic_distortion_is_smoothed_noise_of_the_size_asked(smoothness):
    field = displacement((300, 20, 14), 1.5, smoothness, generator())
    assert field.shape == (300, 20, 14, 2)
    size = np.sqrt((field.astype(np.float64) ** 2).mean((0, 1, 2)))
    assert np.allclose(size, 1.5, rtol=0.1)
    rim = np.sqrt((field[:, [0, -1]].astype(np.float64) ** 2).mean())
    assert np.isclose(rim, 1.5, rtol=0.15)  # the edges move as much as the middle
    reach = int(np.ceil(3 * smoothness))
    noise = 2 * generator().random((300, 2, 20 + 2 * reach, 14 + 2 * reach), np.float32) - 1
    smooth = ndimage.gaussian_filter(
        noise.astype(np.float64), (0, 0, smoothness, smoothness), radius=(0, 0, reach, reach)
    )[:, :, reach:-reach, reach:-reach].transpose(0, 2, 3, 1)
    ratio = field / smooth
    assert np.allclose(field, np.median(ratio) * smooth, atol=COMPOSED, rtol=COMPOSED)


def test_a_bend_takes_pixels_from_where_it_says():
    bend = displacement((6, 12, 17), 1.0, 2.0, generator())
    got = warp(IMAGES, matrices(moves(6)), "black", bend).numpy()
    y, x = np.mgrid[0:12, 0:17]
    for image, result, (dx, dy) in zip(
        IMAGES.numpy(), got, bend.transpose(0, 3, 1, 2), strict=True
    ):
        for channel, plane in zip(image, result, strict=True):
            want = ndimage.map_coordinates(channel, [y + dy, x + dx], order=1, mode="grid-constant")
            assert np.abs(plane - want).max() < COMPOSED


@pytest.mark.parametrize(("name", "ours"), [
    ("Brightness", augment.brightness),
    ("Contrast", augment.contrast),
    ("Sharpness", augment.sharpness),
])  # fmt: skip
@pytest.mark.parametrize("factor", [0.1, 0.6, 1.0, 1.9])
@pytest.mark.parametrize("channels", [1, 3])
def test_shades_are_pillows(name, ours, factor, channels):
    images = IMAGES if channels == 3 else IMAGES[:, :1]
    got = ours(images, torch.full((6, 1, 1, 1), factor)).numpy() * 255
    for pixels, result in zip(PIXELS[:, :channels], got, strict=True):
        picture = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        want = np.asarray(getattr(ImageEnhance, name)(picture).enhance(factor)).reshape(12, 17, -1)
        assert np.abs(result.transpose(1, 2, 0) - want).max() < 2  # Pillow rounds on its way


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterising_is_pillows(bits):
    got = np.rint(augment.posterise(IMAGES, bits).numpy() * 255).astype(np.uint8)
    want = [np.asarray(ImageOps.posterize(picture, bits)) for picture in pictures(PIXELS)]
    assert np.array_equal(got.transpose(0, 2, 3, 1), np.stack(want))


def test_posterising_knows_every_level():
    levels = torch.arange(256).view(1, 1, 16, 16) / 255
    for bits in range(1, 9):
        got = np.rint(augment.posterise(levels, bits).numpy() * 255).astype(int).ravel()
        assert np.array_equal(got, np.arange(256) >> (8 - bits) << (8 - bits))


def test_a_square_is_erased_anywhere_and_nothing_else():
    ones = torch.ones(3000, 2, 20, 30)
    gone = erase(ones, 0.3, generator()).numpy() == 0
    assert np.array_equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert np.array_equal(gone[:, 0], rows[:, :, None] & columns[:, None, :])
    assert rows.sum(1).max() in (5, 6, 7)
    assert columns.sum(1).max() in (8, 9, 10)
    assert gone.any(axis=(0, 1)).all()
    assert torch.equal(ones, torch.ones_like(ones))


def test_randaugment_takes_each_operation_as_often():
    image = torch.full((1, 1, 21, 21), 0.4)
    image[..., 8:13, 8:13] = 0.6
    n, share = 6000, 1 / len(OPERATIONS)
    asked = Augment(randaugment=1, magnitude=10, edges="repeat")
    got = asked(image.repeat(n, 1, 1, 1), generator())
    unchanged = (got - image).abs().flatten(1).max(1).values < 1e-3
    assert stats.binomtest(int(unchanged.sum()), n, share).pvalue > 0.001
    corner, mean = got[:, 0, 0, 0], float(image.mean())
    marks = {  # a corner's shade, which moves leave as it is
        "brightness": (0.1 * 0.4, 1.9 * 0.4),
        "contrast": (mean + 0.1 * (0.4 - mean), mean + 1.9 * (0.4 - mean)),
        "posterise": (96 / 255, 96 / 255),
    }
    for shades in marks.values():
        marked = [(corner - shade).abs() < 1e-4 for shade in shades]
        assert stats.binomtest(int((marked[0] | marked[1]).sum()), n, share).pvalue > 0.001
        assert bool(marked[0].any())
        assert bool(marked[1].any())


def test_randaugments_moves_have_the_reach_the_docstring_names():
    n = 2000
    chosen = np.tile(np.arange(len(OPERATIONS)), (1, n))
    signs = generator().choice([-1.0, 1.0], chosen.shape)
    for magnitude in (10, 5):
        drawn = Augment(magnitude=magnitude)._chosen_moves(chosen, signs, 20, 40)
        share = magnitude / 10
        want = dict.fromkeys((SHEAR_X, SHEAR_Y), 0.3 * share) | {LOG_SCALE: 0}
        want |= {ANGLE: np.deg2rad(30) * share, SHIFT_X: 18 * share, SHIFT_Y: 9 * share}
        for column, reach in want.items():
            assert np.allclose(drawn[:, column].max(), reach)
            assert np.allclose(drawn[:, column].min(), -reach)
            assert (drawn[:, column] != 0).sum() == (n if reach else 0)


@pytest.mark.parametrize("asked", [ALL, *(
    Augment(**{f.name: getattr(ALL, f.name)}) for f in fields(Augment)
    if getattr(ALL, f.name) != getattr(Augment(), f.name)
)])  # fmt: skip
def test_the_generator_alone_decides_and_images_stay_images(asked):
    images = IMAGES.repeat(20, 1, 1, 1)
    before = images.clone()
    first = asked(images, generator())
    torch.manual_seed(3)
    assert torch.equal(asked(images, generator()), first)
    assert not torch.equal(asked(images, generator(2)), first)
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1 + SIMPLE


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([1, 3]))
def test_images_of_any_size_can_be_changed(height, width, channels):
    got = ALL(torch.full((5, channels, height, width), 0.5), generator())
    assert got.shape == (5, channels, height, width)
    assert bool(torch.isfinite(got).all())


def test_a_batch_of_digits_is_changed_in_well_under_ten_milliseconds():
    digits = torch.rand(128, 1, 28, 28)
    asked = Augment(rotate_degrees=10, scale=0.1, shift=0.1, shear=0.1, crop=2, erase=0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for seed in range(30):
            begun = time.perf_counter()
            asked(digits, generator(seed))
            seconds.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.01
