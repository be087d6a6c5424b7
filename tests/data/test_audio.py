"""Clips as documents: fitted on training clips, the same in training and in serving."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from danlu.batch import PADDING
from danlu.data.acoustics import log_mel
from danlu.data.audio import FRAME_ID, AudioEncoder, refusal, statistics
from danlu.data.clips import UnusableAudio
from danlu.errors import DataError
from danlu.recipe.audio import Audio
from tolerances import COMPOSED, SIMPLE

RATE = 16_000
SETTINGS = Audio(num_mels=24, stack=3, max_seconds=1.0, pitch="absolute")


def spoken(hz_from, hz_to, seconds=0.4, level=0.2, seed=0):
    """Return a WAV file of a buzzing glide between two short pauses."""
    hz = np.geomspace(hz_from, hz_to, int(seconds * RATE))
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    buzz = level * sum(np.sin(k * phase) / k for k in range(1, 10))
    noise = np.random.default_rng(seed).standard_normal(len(buzz) + 3200) * 0.002
    return wav(np.pad(buzz, 1600) + noise)


def wav(samples, rate=RATE):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def samples_of(record):
    return soundfile.read(io.BytesIO(record), dtype="float32")[0]


CLIPS = [spoken(100 + 30 * k, 200 - 10 * k, 0.3 + 0.05 * k, seed=k) for k in range(6)]
ENCODER = AudioEncoder.fit(CLIPS, SETTINGS)
DOCUMENTS = ENCODER.encode(CLIPS)


def test_columns_have_mean_0_and_deviation_1_over_the_training_frames():
    encoder = AudioEncoder.fit(CLIPS, SETTINGS.model_copy(update={"stack": 1}))
    frames = np.concatenate([encoder.encode(CLIPS)[k] for k in range(len(CLIPS))])
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=COMPOSED)
    np.testing.assert_allclose(frames.std(axis=0), 1, atol=COMPOSED)


def test_positions_are_stacked_frames_and_the_last_one_is_filled_with_the_last_frame():
    signal = samples_of(CLIPS[1])
    bands = log_mel(signal, RATE, 24)
    frames = (bands - ENCODER.mean[:24]) / ENCODER.scale[:24]
    values = DOCUMENTS.values_UK[DOCUMENTS.offsets[1] : DOCUMENTS.offsets[2]]
    assert ENCODER.spec.value_dims == values.shape[1] == 3 * (24 + 3)
    assert len(values) == -(-len(frames) // 3) == DOCUMENTS.sizes[1]
    assert len(frames) % 3  # or this test would not see any filling
    for position in range(len(values)):
        for place in range(3):
            frame = frames[min(3 * position + place, len(frames) - 1)]
            got = values[position, 27 * place : 27 * place + 24]
            np.testing.assert_allclose(got, frame, atol=SIMPLE)


def test_clips_are_laid_end_to_end():
    rows = np.array([4, 0, 3])
    batch = DOCUMENTS.lay(rows)
    sizes, total = DOCUMENTS.sizes[rows], int(DOCUMENTS.sizes[rows].sum())
    assert batch.num_documents == 3
    assert batch.row_N.tolist() == rows.tolist()
    assert (batch.ids_BT[0, :total] == FRAME_ID).all()
    assert FRAME_ID == ENCODER.spec.first_value_id == ENCODER.spec.vocab_size - 1
    assert batch.slots_U.tolist() == list(range(total))
    assert (batch.document_BT[0, total:] == PADDING).all()
    starts = np.cumsum(sizes) - sizes
    for row, start, size in zip(rows, starts, sizes, strict=True):
        assert batch.position_BT[0, start : start + size].tolist() == list(range(size))
        expected = torch.from_numpy(DOCUMENTS[row].reshape(size, -1))
        torch.testing.assert_close(batch.values_UK[start : start + size], expected)


def test_a_tone_survives_the_variations():
    """A rise stays a rise of as many octaves, and the clip's median stays as it was."""
    column, median = 24, 26
    for seed in range(20):
        for k in (0, 5):
            laid = DOCUMENTS.lay(np.array([k]), np.random.default_rng(seed)).values_UK
            varied = ENCODER.columns(laid.numpy().reshape(-1, 27))
            original = ENCODER.columns(DOCUMENTS[k])
            np.testing.assert_allclose(varied[:, median], original[:, median], atol=COMPOSED)
            middle = slice(15, 30)
            course, before = varied[middle, column], original[middle, column]
            np.testing.assert_allclose(np.ptp(course), np.ptp(before), rtol=0.1)
            assert np.sign(course[-1] - course[0]) == np.sign(before[-1] - before[0])


def test_pitch_columns_are_octaves_about_the_median_and_clearness():
    record = spoken(100, 200, 0.5)
    columns = ENCODER.columns(ENCODER.encode([record])[0])
    relative, clear, median = columns[:, 24:].T
    assert median[0] == pytest.approx(np.log2(100) + 0.5, abs=0.03)
    assert relative[58] - relative[12] == pytest.approx(46 / 50, abs=0.03)  # an octave in 50
    assert (clear[13:57] > 0.9).all()
    np.testing.assert_allclose(clear[[0, -1]], 0, atol=SIMPLE)
    higher = ENCODER.columns(ENCODER.encode([spoken(150, 300, 0.5)])[0])
    np.testing.assert_allclose(higher[13:57, 24], relative[13:57], atol=0.02)


@pytest.mark.parametrize(("pitch", "columns"), [("none", 0), ("relative", 2), ("absolute", 3)])
def test_pitch_is_followed_only_if_asked_for(pitch, columns):
    settings = SETTINGS.model_copy(update={"pitch": pitch})
    encoder = AudioEncoder.fit(CLIPS, settings)
    assert encoder.spec.value_dims == 3 * (24 + columns)
    described = statistics(encoder, encoder.encode(CLIPS))
    extra = 0 if pitch == "none" else 22 + (columns == 3)
    assert described.shape == (len(CLIPS), 3 * 24 + 11 + extra)


def test_what_was_cut_silent_clipped_or_unvoiced_is_counted():
    generator = np.random.default_rng(0)
    long = spoken(100, 120, 1.5)
    silent = wav(np.zeros(4000))
    hiss = wav(generator.standard_normal(8000) * 0.05)
    loud = wav(np.clip(50 * samples_of(CLIPS[0]), -1, 1))
    counts = ENCODER.encode([*CLIPS, long, silent, hiss, loud]).counts
    assert (counts.clips, counts.cut, counts.silent, counts.clipped) == (10, 1, 1, 1)
    assert counts.unvoiced in (1, 2)  # hiss may look voiced in a frame; silence never does
    whole = sum(len(samples_of(record)) for record in [*CLIPS, long, silent, hiss, loud])
    assert counts.seconds == pytest.approx(whole / RATE)
    assert ENCODER.encode([long]).sizes[0] == -(-101 // 3)


def test_extreme_clips_give_finite_values():
    tiny, silent = wav(np.full(1, 0.5)), wav(np.zeros(4000))
    documents = ENCODER.encode([tiny, silent])
    assert documents.sizes[0] == 1
    assert np.isfinite(documents.values_UK).all()
    assert np.isfinite(statistics(ENCODER, documents)).all()
    varied = documents.lay(np.arange(2), np.random.default_rng(0)).values_UK
    assert varied.isfinite().all()
    encoder = AudioEncoder.fit([silent], SETTINGS)  # no column varies
    assert not encoder.encode([silent]).values_UK.round(decimals=3).any()


def test_a_clip_that_cannot_be_used_is_named_with_its_reason():
    broken = [CLIPS[0], b"no sound", CLIPS[1][:-400], wav(np.zeros((100, 9)))]
    found = {n: reason for n, one in enumerate(broken) if (reason := refusal(one, SETTINGS))}
    assert list(found) == [1, 2, 3]
    assert found[1] == "not a WAV, FLAC, OGG or MP3 file"
    assert found[2].startswith("truncated")
    assert found[3] == "9 channels, and the limit is 8"
    for attempt in (ENCODER.encode, lambda records: AudioEncoder.fit(records, SETTINGS)):
        with pytest.raises(UnusableAudio, match="not a WAV") as caught:
            attempt(broken)
        assert caught.value.where == "clip 1"


def test_no_clip_or_bands_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="no clip"):
        AudioEncoder.fit([], SETTINGS)
    with pytest.raises(DataError, match="no clip"):
        ENCODER.encode([])
    with pytest.raises(DataError, match="no bands fit"):
        AudioEncoder.fit(CLIPS, Audio(rate=8000, high_hz=5000))
    with pytest.raises(DataError, match="too narrow"):
        AudioEncoder.fit(CLIPS, Audio(num_mels=256))


def test_statistics_are_those_of_the_frames():
    described = statistics(ENCODER, DOCUMENTS)
    for k, record in enumerate(CLIPS[:2]):
        bands = log_mel(samples_of(record), RATE, 24)
        filled = np.concatenate((bands, np.repeat(bands[-1:], -len(bands) % 3, axis=0)))
        np.testing.assert_allclose(described[k, :24], filled.mean(0), atol=COMPOSED)
        np.testing.assert_allclose(described[k, 24:48], filled.std(0), atol=COMPOSED)
        steps = np.abs(filled[1:] - filled[:-1]).mean(0)
        np.testing.assert_allclose(described[k, 48:72], steps, atol=COMPOSED)
        assert described[k, 72] == pytest.approx(0.01 * len(filled))
    course = described[:, 83:93]  # from 100 + 30 k to 200 - 10 k Hz
    for k in range(6):
        octaves = np.log2((200 - 10 * k) / (100 + 30 * k))
        assert course[k, -1] - course[k, 0] == pytest.approx(octaves, abs=0.12)
    assert (np.diff(described[:, -1]) > 0).all()  # medians rise: sqrt of the ends' product


def test_a_louder_copy_differs_by_its_gain_alone():
    louder = wav(1.5 * samples_of(CLIPS[3]))
    one, two = (ENCODER.columns(ENCODER.encode([r])[0]) for r in (CLIPS[3], louder))
    np.testing.assert_allclose((two - one)[15:30, :24], 2 * np.log(1.5), atol=0.01)
    np.testing.assert_allclose(two[15:30, 24:], one[15:30, 24:], atol=1e-3)
    assert replace(ENCODER).spec == ENCODER.spec


@pytest.mark.parametrize("samples", [1, 159, 160, 479, 480, 1439, 1440, 5000])
def test_a_transcript_needs_as_many_positions_as_the_clip_really_has(samples):
    record = wav(np.random.default_rng(0).uniform(-0.1, 0.1, samples))
    (positions,) = ENCODER.encode([record]).sizes.tolist()
    fits = "ab" * positions
    assert refusal(record, SETTINGS, fits[:positions]) is None
    assert refusal(record, SETTINGS, fits[: positions + 1]) == "too short for its transcript"
    assert refusal(record, SETTINGS) is None


def test_a_clip_that_would_be_cut_has_no_transcript():
    record = spoken(100, 200, 1.2)
    assert refusal(record, SETTINGS) is None
    assert "longer than 1 s" in refusal(record, SETTINGS, "a")
