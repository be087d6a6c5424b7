"""Variations of frames, by what must hold whatever is drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.specaugment import FrameAugmenter
from danlu.recipe.audio import AudioAugment
from tolerances import SIMPLE

BANDS, OTHERS = 20, 3
STILL = {
    "frequency_masks": 0, "time_masks": 0, "gain_db": 0.0, "shift_ms": 0.0, "stretch": 0.0,
}  # fmt: skip
SCALE = np.linspace(0.5, 2, BANDS).astype(np.float32)


def augmented(frames, sizes, seed=0, **kept):
    augmenter = FrameAugmenter(AudioAugment(**STILL | kept), 10.0, SCALE)
    return augmenter(frames.copy(), np.asarray(sizes), np.random.default_rng(seed))


def frames_of(sizes, seed=1):
    generator = np.random.default_rng(seed)
    return generator.uniform(1, 2, (sum(sizes), BANDS + OTHERS)).astype(np.float32)


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(sizes=SIZES, seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_without_any_variation_the_frames_stay_as_they_are(sizes, seed):
    frames = frames_of(sizes)
    np.testing.assert_allclose(augmented(frames, sizes, seed), frames, rtol=SIMPLE)


@given(sizes=SIZES, seed=st.integers(0, 999), masks=st.integers(1, 3), width=st.floats(0, 0.9))
@settings(deadline=None, max_examples=60)
def test_frequency_masks_are_bands_of_a_whole_clip_and_no_wider_than_asked(
    sizes, seed, masks, width
):
    frames = frames_of(sizes)
    found = augmented(frames, sizes, seed, frequency_masks=masks, frequency_width=width)
    hidden = found[:, :BANDS] == 0
    np.testing.assert_array_equal(found[:, :BANDS][~hidden], frames[:, :BANDS][~hidden])
    np.testing.assert_array_equal(found[:, BANDS:], frames[:, BANDS:])
    for clip in np.split(hidden, np.cumsum(sizes)[:-1]):
        assert (clip == clip[0]).all()
        assert clip[0].sum() <= masks * int(width * BANDS)
        runs = (np.diff(clip[0].astype(int), prepend=0) == 1).sum()
        assert runs <= masks


@given(sizes=SIZES, seed=st.integers(0, 999), masks=st.integers(1, 3), width=st.floats(0, 0.9))
@settings(deadline=None, max_examples=60)
def test_time_masks_hide_runs_of_frames_and_leave_the_pitch(sizes, seed, masks, width):
    frames = frames_of(sizes)
    found = augmented(frames, sizes, seed, time_masks=masks, time_width=width)
    hidden = found[:, :BANDS] == 0
    assert (hidden.all(axis=1) == hidden.any(axis=1)).all()
    np.testing.assert_array_equal(found[:, BANDS:], frames[:, BANDS:])
    for size, clip in zip(sizes, np.split(hidden[:, 0], np.cumsum(sizes)[:-1]), strict=True):
        assert clip.sum() <= masks * int(width * size)
        assert (np.diff(clip.astype(int), prepend=0) == 1).sum() <= masks


def test_every_width_and_place_of_a_mask_is_drawn():
    sizes = [10] * 4000
    hidden = augmented(frames_of(sizes), sizes, frequency_masks=1, frequency_width=0.25)
    bands = (hidden.reshape(4000, 10, -1)[:, 0, :BANDS] == 0).sum(axis=1)
    np.testing.assert_allclose(np.bincount(bands, minlength=6) / 4000, 1 / 6, atol=0.02)
    hidden = augmented(frames_of(sizes), sizes, time_masks=1, time_width=0.3)
    times = (hidden.reshape(4000, 10, -1)[..., 0] == 0).sum(axis=1)
    np.testing.assert_allclose(np.bincount(times, minlength=4) / 4000, 1 / 4, atol=0.025)
    hidden = (hidden.reshape(4000, 10, -1)[..., 0] == 0).mean(axis=0)
    assert (hidden > 0.05).all()  # the first frame and the last one too


def test_a_gain_is_the_same_number_of_decibels_in_every_band():
    sizes = [5, 9]
    frames = frames_of(sizes)
    added = (augmented(frames, sizes, gain_db=12.0) - frames)[:, :BANDS] * SCALE
    decibels = added * 10 / np.log(10)
    for clip in np.split(decibels, [5]):
        np.testing.assert_allclose(clip, clip[0, 0], rtol=COARSE)
        assert 0 < abs(clip[0, 0]) <= 12
    assert decibels[0, 0] != pytest.approx(decibels[-1, 0])


COARSE = 1e-4  # differences of float32


@given(sizes=SIZES, seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_moving_a_clip_takes_nothing_from_its_neighbour_and_changes_no_level(sizes, seed):
    clip = np.repeat(np.arange(len(sizes)), sizes).astype(np.float32)
    frames = np.tile(clip[:, None], (1, BANDS + OTHERS))
    moved = augmented(frames, sizes, seed, shift_ms=200.0, stretch=0.5)
    np.testing.assert_allclose(moved, frames, rtol=SIMPLE)


def test_a_ramp_of_pitch_is_shifted_and_stretched_about_the_middle():
    sizes = [101] * 50
    ramp = np.tile(np.arange(101, dtype=np.float32), 50)
    frames = np.tile(ramp[:, None], (1, BANDS + OTHERS))
    shifted = augmented(frames, sizes, shift_ms=50.0).reshape(50, 101, -1)[..., -1]
    away = shifted[:, 50] - 50
    assert (np.abs(away) <= 5).all()
    assert away.min() < -3
    assert away.max() > 3
    expected = np.clip(np.arange(101) + away[:, None], 0, 100)
    np.testing.assert_allclose(shifted, expected, atol=1e-3)
    stretched = augmented(frames, sizes, stretch=0.2).reshape(50, 101, -1)[..., -1]
    speed = (stretched[:, 60] - stretched[:, 40]) / 20
    assert (np.abs(speed - 1) <= 0.2 + SIMPLE).all()
    assert speed.std() > 0.05
    np.testing.assert_allclose(stretched[:, 50], 50, atol=1e-3)


def test_the_generator_alone_decides():
    sizes = [30, 12]
    kept = AudioAugment().model_dump()
    one = augmented(frames_of(sizes), sizes, 3, **kept)
    np.testing.assert_array_equal(one, augmented(frames_of(sizes), sizes, 3, **kept))
    assert (one != augmented(frames_of(sizes), sizes, 4, **kept)).any()
