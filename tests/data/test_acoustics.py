"""Log-mel frames and pitch against slow loops, other libraries and sounds of known pitch."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.acoustics import (
    hz_to_mel,
    log_mel,
    mel_filters,
    mel_to_hz,
    num_frames,
    pitch,
    power_spectrum,
)
from danlu.errors import DataError
from tolerances import COMPOSED, SIMPLE

RATE = 16_000


def noise(samples, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def voice(hz, rate=RATE, harmonics=12):
    """Return a buzz whose pitch follows `hz`, one value a sample, its overtones falling off."""
    phase = 2 * np.pi * np.cumsum(hz) / rate
    parts = [np.where(k * hz < rate / 2, np.sin(k * phase), 0) / k for k in range(1, harmonics + 1)]
    return (0.2 * np.sum(parts, axis=0)).astype(np.float32)


def test_the_mel_scale_has_its_published_values():
    # Slaney, 1998: 3 mels to 200 Hz up to 1 kHz; 27 mels take the pitch from there to 6.4 kHz.
    hz = np.array([0, 200, 1000, 6400, 1000 * 6.4**0.5])
    mel = np.array([0, 3, 15, 42, 28.5])
    np.testing.assert_allclose(hz_to_mel(hz), mel, rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(mel), hz, rtol=1e-12)


@pytest.mark.parametrize(("rate", "size", "bands"), [(16_000, 512, 80), (8000, 256, 23)])
def test_filters_are_triangles_evenly_spaced_in_mel(rate, size, bands):
    low, high = 40.0, rate / 2 - 100
    filters = mel_filters(rate, size, bands, low, high)

    def mel_of(hz):
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def hz_of(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    step = (mel_of(high) - mel_of(low)) / (bands + 1)
    edges = [hz_of(mel_of(low) + k * step) for k in range(bands + 2)]
    for band in range(bands):
        left, middle, right = edges[band : band + 3]
        for k in range(size // 2 + 1):
            hz = k * rate / size
            expected = 0.0
            if left < hz <= middle:
                expected = (hz - left) / (middle - left)
            elif middle < hz < right:
                expected = (right - hz) / (right - middle)
            assert filters[band, k] == pytest.approx(expected, abs=SIMPLE)


def test_bands_too_narrow_for_the_window_or_beyond_half_the_rate_are_refused():
    with pytest.raises(DataError, match="too narrow"):
        mel_filters(RATE, 256, 128, 0.0, 8000.0)
    for low, high in ((0.0, 8001.0), (500.0, 400.0), (-1.0, 400.0)):
        with pytest.raises(DataError, match="no bands fit"):
            mel_filters(RATE, 512, 20, low, high)


@pytest.mark.parametrize(("rate", "window_ms", "hop_ms"), [(16_000, 32, 10), (8000, 32, 8)])
def test_the_power_spectrum_is_scipys(rate, window_ms, hop_ms):
    signal = noise(rate)
    width, hop = window_ms * rate // 1000, hop_ms * rate // 1000
    _, _, expected = scipy.signal.stft(
        signal.astype(float), nperseg=width, noverlap=width - hop, boundary="zeros", padded=False
    )
    power = power_spectrum(signal, rate, window_ms, hop_ms)
    assert len(power) == num_frames(len(signal), rate, hop_ms)
    both = min(len(power), expected.shape[1])
    assert both > 90
    np.testing.assert_allclose(
        power[:both], np.abs(expected.T[:both]) ** 2, rtol=COMPOSED, atol=SIMPLE * power.max()
    )


def test_the_spectrum_of_a_padded_window_is_a_naive_transform():
    signal = noise(1000, seed=4)
    width, hop, size = 200, 80, 256  # 25 ms at 8 kHz is no power of two
    power = power_spectrum(signal, 8000, 25, 10)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    padded = np.concatenate((np.zeros(width // 2), signal, np.zeros(width)))
    for frame in (0, 1, 7, len(power) - 1):
        part = padded[frame * hop : frame * hop + width] * window / window.sum()
        for k in range(0, size // 2 + 1, 9):
            wave = np.exp(-2j * np.pi * k * np.arange(width) / size)
            assert power[frame, k] == pytest.approx(abs((part * wave).sum()) ** 2, abs=1e-9)


def test_a_tone_stands_in_its_own_band_and_a_gain_is_an_addition():
    for hz in (300.0, 1000.0, 4000.0):
        tone = (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)).astype(np.float32)
        bands = log_mel(tone, RATE, 40, low_hz=0)
        centres = mel_to_hz(np.linspace(0, hz_to_mel(8000), 42))[1:-1]
        assert abs(hz_to_mel(centres[bands[50].argmax()]) - hz_to_mel(hz)) < hz_to_mel(8000) / 41
        louder = log_mel(2 * tone, RATE, 40, low_hz=0)
        inside = bands[50] > -10  # far above what is added before the logarithm
        np.testing.assert_allclose((louder - bands)[50][inside], np.log(4), atol=COMPOSED)


@given(samples=st.integers(1, 4000), hop_ms=st.sampled_from([5.0, 10.0, 12.5]))
@settings(deadline=None, max_examples=40)
def test_bands_and_pitch_have_the_same_finite_frames_however_short_the_signal(samples, hop_ms):
    signal = noise(samples, seed=samples)
    bands = log_mel(signal, RATE, 20, hop_ms=hop_ms)
    found = pitch(signal, RATE, hop_ms)
    assert len(bands) == len(found.hz) == len(found.strength) == num_frames(samples, RATE, hop_ms)
    assert np.isfinite(bands).all()
    assert np.isfinite(found.hz).all()
    assert ((found.strength >= 0) & (found.strength <= 1)).all()
    assert np.isfinite(found.log2()).all()


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("hz", [80.0, 123.4, 220.0, 391.0])
def test_the_pitch_of_a_steady_voice_is_right_to_half_a_percent(rate, hz):
    signal = voice(np.full(rate // 2, hz), rate) + noise(rate // 2, level=0.003)
    found = pitch(signal, rate)
    inside = slice(4, -4)
    np.testing.assert_allclose(found.hz[inside], hz, rtol=5e-3)
    assert (found.strength[inside] > 0.9).all()


@pytest.mark.parametrize("ends", [(120, 240), (300, 150), (100, 100), (90, 180)])
def test_a_glide_is_followed(ends):
    seconds = np.arange(RATE // 2) / RATE
    hz = np.geomspace(*ends, len(seconds))
    found = pitch(voice(hz) + noise(len(hz), level=0.003), RATE)
    expected = np.interp(np.arange(len(found.hz)) * 0.01, seconds, hz)
    np.testing.assert_allclose(found.hz[4:-4], expected[4:-4], rtol=0.02)


def test_a_weak_fundamental_is_not_mistaken_for_its_octave():
    time = np.arange(RATE // 2) / RATE
    parts = [np.sin(2 * np.pi * 130 * k * time) * (0.05 if k == 1 else 1 / k) for k in range(1, 9)]
    found = pitch((0.2 * np.sum(parts, axis=0)).astype(np.float32), RATE)
    np.testing.assert_allclose(found.hz[4:-4], 130, rtol=5e-3)


def test_noise_and_silence_have_no_pitch_and_a_pause_is_bridged_by_a_line():
    assert (pitch(noise(RATE, seed=2), RATE).hz > 0).mean() < 0.1
    silence = pitch(np.zeros(RATE, np.float32), RATE)
    assert not silence.hz.any()
    assert not silence.strength.any()
    assert not silence.log2().any()
    low, high = (voice(np.full(RATE // 4, hz)) for hz in (100.0, 200.0))
    found = pitch(np.concatenate((low, np.zeros(RATE // 4, np.float32), high)), RATE)
    assert not found.hz[30:45].any()
    octaves = found.log2()
    assert octaves[10] == pytest.approx(np.log2(100), abs=0.01)
    assert octaves[37] == pytest.approx(np.log2(100) + 0.5, abs=0.1)
    assert octaves[-5] == pytest.approx(np.log2(200), abs=0.01)


def test_a_voice_of_less_than_thirty_milliseconds_is_none():
    found = pitch(np.pad(voice(np.full(RATE // 4, 150.0)), RATE // 8) + noise(RATE // 2), RATE)
    runs = np.flatnonzero(np.diff((found.hz > 0).astype(int), prepend=0, append=0))
    assert len(runs)
    assert (runs[1::2] - runs[::2] >= 3).all()
    sudden = np.pad(voice(np.geomspace(100, 200, 4800)), 1600) + noise(8000, level=0.002)
    assert pitch(sudden, RATE).hz.max() < 210  # a frame that touches the beginning is not 449 Hz


def test_a_steady_offset_changes_no_pitch():
    signal = voice(np.full(RATE // 4, 150.0))
    np.testing.assert_allclose(pitch(signal + 0.3, RATE).hz[5:-5], 150, rtol=5e-3)


def test_a_pitch_that_the_rate_cannot_show_is_refused():
    with pytest.raises(DataError, match="no pitch between"):
        pitch(np.zeros(100, np.float32), 1000, high_hz=300)
    with pytest.raises(DataError, match="no pitch between"):
        pitch(np.zeros(100, np.float32), RATE, low_hz=300, high_hz=200)
