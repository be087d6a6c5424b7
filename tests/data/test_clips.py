"""Sound files: what is decoded, and what is refused and why."""

import base64
import contextlib
import io
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.clips import UnusableAudio, clip_html, decode, picture
from danlu.errors import DataError

RATE = 16_000
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def tone(hz=440.0, seconds=1.0, rate=48_000, level=0.5):
    return level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def file_of(samples, rate=48_000, kind=("WAV", "PCM_16")):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind[0], subtype=kind[1])
    return stream.getvalue()


def reason(data, **limits):
    with pytest.raises(UnusableAudio) as caught:
        decode(data, RATE, **limits)
    return caught.value.what


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded_and_brought_to_the_rate(kind):
    clip = decode(file_of(tone(), kind=kind), RATE)
    assert clip.signal.dtype == np.float32
    assert (clip.source_rate, clip.channels, clip.cut) == (48_000, 1, False)
    assert clip.seconds == pytest.approx(1, abs=0.05)
    assert len(clip.signal) == pytest.approx(RATE * clip.seconds, abs=2)
    spectrum = np.abs(np.fft.rfft(clip.signal[:RATE]))
    assert spectrum.argmax() == 440  # Hz, for a transform of one second
    middle = clip.signal[RATE // 4 : -RATE // 4]  # lossy formats overshoot at the ends
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)
    assert clip.peak >= np.abs(middle).max() - 0.01


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_a_tone_and_lets_none_fold_back(rate):
    kind = ("WAV", "FLOAT")
    inner = slice(RATE // 4, -RATE // 4)  # the ends ring
    hz = 1234.0
    signal = decode(file_of(tone(hz, rate=rate), rate, kind), RATE).signal[inner]
    expected = tone(hz, rate=RATE)[inner]
    np.testing.assert_allclose(signal, expected[: len(signal)], atol=1e-4)
    if rate > 2 * 10_000:
        beyond = decode(file_of(tone(9000.0, rate=rate), rate, kind), RATE).signal[inner]
        assert np.abs(beyond).max() < 1e-5


def test_channels_are_averaged():
    left, right = tone(300, rate=RATE), 0.3 * tone(700, rate=RATE)
    data = file_of(np.stack([left, right], axis=1), RATE, ("WAV", "FLOAT"))
    clip = decode(data, RATE)
    assert clip.channels == 2
    np.testing.assert_allclose(clip.signal, (left + right) / 2, atol=1e-6)


def test_silence_and_clipping_are_counted_and_not_refused():
    silent = decode(file_of(np.zeros(800), RATE), RATE)
    assert (silent.silent, silent.clipped) == (True, 0)
    loud = np.clip(3 * tone(100, rate=RATE), -1, 1)
    clip = decode(file_of(loud, RATE, ("WAV", "FLOAT")), RATE)
    assert not clip.silent
    assert clip.clipped == (np.abs(loud) >= 0.999).sum() > 1000


def test_a_long_clip_is_cut_and_says_so_and_a_longer_one_is_refused():
    data = file_of(tone(seconds=3.0))
    clip = decode(data, RATE, max_seconds=2.0)
    assert (clip.cut, clip.seconds, len(clip.signal)) == (True, 3.0, 2 * RATE)
    assert not decode(data, RATE, max_seconds=3.0).cut
    assert reason(data, limit_seconds=2.5) == "3 seconds, and the limit is 2.5"


def test_a_bomb_is_refused_before_it_is_decoded():
    # An hour of silence takes few bytes; a decoder would make 0.7 GB of it.
    hour = file_of(np.zeros(3600 * 8000, np.int16), 8000, ("FLAC", "PCM_16"))
    assert len(hour) < 200_000
    assert "3600 seconds" in reason(hour)


def test_too_many_channels_an_odd_rate_or_no_sample_are_refused():
    assert reason(file_of(np.zeros((10, 9)), RATE)) == "9 channels, and the limit is 8"
    assert "1000000 samples a second" in reason(file_of(np.zeros(10), 1_000_000))
    assert reason(file_of(np.zeros(0), RATE)) == "empty: it holds no sample"
    broken = np.array([0.0, np.nan, 0.1], np.float32)
    assert "not finite" in reason(file_of(broken, RATE, ("WAV", "FLOAT")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_a_truncated_file_is_refused(kind, share):
    signal = tone() + 0.05 * np.random.default_rng(0).standard_normal(48_000)
    data = file_of(signal, kind=kind)
    assert re.match("truncated|damaged", reason(data[: int(share * len(data))]))


def test_a_wav_written_to_a_pipe_states_no_length_and_is_whole():
    data = bytearray(file_of(tone(rate=RATE), RATE))
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(data), RATE).signal) == RATE


@given(st.binary(max_size=400), st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS"]))
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_refused_whatever_they_begin_with(data, magic):
    if not magic and data[:1] == b"\xff":
        data = b"\0" + data[1:]  # an MP3 frame's mark: its decoder complains on the terminal
    assert reason(magic + data)


@pytest.mark.parametrize("kind", KINDS[:4])
@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_flipped_bytes_are_decoded_to_finite_numbers_or_refused(kind, seed):
    generator = np.random.default_rng(seed)
    data = bytearray(file_of(tone(seconds=0.1), kind=kind))
    for place in generator.integers(0, len(data), 3):
        data[place] = generator.integers(0, 256)
    with contextlib.suppress(UnusableAudio):
        assert np.isfinite(decode(bytes(data), RATE).signal).all()


def test_a_refusal_is_an_error_in_the_data():
    assert issubclass(UnusableAudio, DataError)


def test_the_player_holds_the_sound_and_nothing_else_of_the_file():
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 48_000, 1, format="FLAC") as file:
        file.title = "a patient's name"
        file.write(tone(seconds=2.0))
    html = clip_html(stream.getvalue(), RATE, max_seconds=1.0)
    kind, inside = re.fullmatch(
        r'<audio controls preload="none" src="data:(audio/flac);base64,([\w+/=]+)"></audio>', html
    ).groups()
    sound = base64.b64decode(inside)
    assert kind == "audio/flac"
    assert b"patient" in stream.getvalue()
    assert b"patient" not in sound
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert (rate, len(samples)) == (RATE, RATE)
    np.testing.assert_allclose(samples[100:-100], tone(rate=RATE)[100:-100], atol=1e-3)
    again, _ = soundfile.read(
        io.BytesIO(base64.b64decode(clip_html(2 * samples, RATE).split(",")[1][:-10]))
    )
    np.testing.assert_allclose(again, np.clip(2 * samples, -1, 1), atol=1e-4)


def test_the_picture_has_low_bands_at_the_bottom_and_80_decibels():
    frames = np.full((3, 4), -50.0, np.float32)
    frames[1, 0] = 0.0
    frames[2, 3] = -60 * np.log(10) / 10  # 60 dB below
    grey = picture(frames)
    assert grey.shape == (4, 3)
    assert grey.dtype == np.uint8
    assert (grey[3, 1], grey[0, 2], grey[0, 0]) == (255, 64, 0)
