"""From a sound wave to frames: log-mel bands, and the pitch of a voice.

Frame *t* of both is centred on second ``t * hop_ms / 1000``, so that their columns stand side
by side; the signal is continued by silence at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from danlu.errors import DataError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_QUIET = 1e-10  # power added before the logarithm: 100 dB below a tone at full scale
_KNEE_HZ, _KNEE_MEL, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27  # Slaney's scale
_FINEST = 16_000  # lags of the autocorrelation in a second, at the least
_CHUNK = 4096  # frames transformed at once, which bounds the memory

# Boersma's path finder, with the values that Praat takes for speech.
_CANDIDATES = 8
_SHORTEST_MS = 30.0  # of a voice; ours
_VOICING, _SILENCE = 0.45, 0.03
_OCTAVE_COST, _JUMP_COST, _VOICED_UNVOICED_COST = 0.01, 0.35, 0.14


def num_frames(samples: int, rate: int, hop_ms: float) -> int:
    """Return the frames of a signal of so many samples."""
    return 1 + samples // _samples(hop_ms, rate)


def _samples(ms: float, rate: int) -> int:
    return max(1, round(ms * rate / 1000))


def hz_to_mel(hz: Doubles | float) -> Doubles:
    """Return pitches on Slaney's mel scale: linear below 1 kHz, logarithmic above.

    Source: Slaney, "Auditory Toolbox", 1998: 200/3 Hz a mel to 1000 Hz, which is mel 15, and
    27 mels to each factor of 6.4 above. The bands of the other common scale (HTK's) are so
    narrow at the low end that at 80 bands and 16 kHz some lie between two frequencies.
    """
    hz = np.asarray(hz, np.float64)
    above = _KNEE_MEL + np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    return np.where(hz < _KNEE_HZ, hz * _KNEE_MEL / _KNEE_HZ, above)


def mel_to_hz(mel: Doubles | float) -> Doubles:
    """Return the frequencies (Hz) of pitches on Slaney's mel scale."""
    mel = np.asarray(mel, np.float64)
    above = _KNEE_HZ * np.exp(_LOG_STEP * np.maximum(mel - _KNEE_MEL, 0))
    return np.where(mel < _KNEE_MEL, mel * _KNEE_HZ / _KNEE_MEL, above)


@lru_cache(maxsize=8)
def mel_filters(rate: int, size: int, num_mels: int, low_hz: float, high_hz: float) -> Floats:
    """Return triangular filters, evenly spaced in mel and each of height one.

    Parameters
    ----------
    rate : int
        Samples a second (Hz).
    size : int
        Samples of the Fourier transform.
    num_mels : int
    low_hz, high_hz : float
        Where the first triangle begins and the last one ends.

    Returns
    -------
    NDArray of float32, shape (num_mels, size // 2 + 1)

    Raises
    ------
    DataError
        If a band lies between two frequencies of the transform, or beyond half the rate.
    """
    if not 0 <= low_hz < high_hz <= rate / 2:
        raise DataError(
            f"no bands fit between {low_hz:g} and {high_hz:g} Hz at {rate} samples a second",
            mend=f"choose frequencies from 0 to {rate / 2:g} Hz, the low one first",
        )
    edges = mel_to_hz(np.linspace(hz_to_mel(low_hz), hz_to_mel(high_hz), num_mels + 2))
    hz = np.fft.rfftfreq(size, 1 / rate)
    rise = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)).astype(np.float32)
    if not filters.any(axis=1).all():
        raise DataError(
            f"{num_mels} mel bands are too narrow for a window of {1000 * size / rate:.0f} ms",
            mend="ask for fewer bands or a longer window",
        )
    filters.setflags(write=False)
    return filters


def _framed(signal: Floats, width: int, hop: int) -> Floats:
    """Return overlapping frames as a view, the first centred on the first sample."""
    padded = np.pad(signal, (width // 2, width - width // 2))
    frames: Floats = sliding_window_view(padded, width)[::hop][: 1 + len(signal) // hop]
    return frames


def power_spectrum(signal: Floats, rate: int, window_ms: float, hop_ms: float) -> Floats:
    """Return the power of Hann-windowed frames, a tone at full scale being one quarter.

    Parameters
    ----------
    signal : NDArray of float32, shape (samples,)
    rate : int
        Samples a second (Hz).
    window_ms, hop_ms : float
        Length of a frame, and from one frame to the next (milliseconds).

    Returns
    -------
    NDArray of float32, shape (frames, size // 2 + 1)
        `size` is the next power of two from the window on.
    """
    width, hop = _samples(window_ms, rate), _samples(hop_ms, rate)
    window = np.hanning(width + 1)[:-1]
    window = (window / window.sum()).astype(np.float32)
    frames = _framed(signal, width, hop)
    size = 1 << (width - 1).bit_length()
    out = np.empty((len(frames), size // 2 + 1), np.float32)
    for start in range(0, len(frames), _CHUNK):
        here = slice(start, start + _CHUNK)
        spectrum = np.fft.rfft(frames[here] * window, size)
        out[here] = spectrum.real**2 + spectrum.imag**2
    return out


def log_mel(
    signal: Floats,
    rate: int,
    num_mels: int,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    low_hz: float = 20.0,
    high_hz: float | None = None,
) -> Floats:
    """Return the logarithm of the power in mel bands, frame by frame.

    Parameters
    ----------
    signal : NDArray of float32, shape (samples,)
        In [-1, 1].
    rate : int
        Samples a second (Hz).
    num_mels : int
        Bands.
    window_ms, hop_ms : float
        Length of a frame, and from one frame to the next (milliseconds).
    low_hz, high_hz : float
        Where the first band begins and the last one ends; by default half the rate.

    Returns
    -------
    NDArray of float32, shape (1 + samples // hop, num_mels)
        Natural logarithms; digital silence is about -23.

    Raises
    ------
    DataError
        See :func:`mel_filters`.

    Notes
    -----
    Slaney's scale, see :func:`hz_to_mel`. Doubling the amplitude adds ``log(4)`` to every
    band, so a gain is an addition here.

    Examples
    --------
    >>> log_mel(np.zeros(16_000, np.float32), 16_000, num_mels=40).shape
    (101, 40)
    """
    power = power_spectrum(signal, rate, window_ms, hop_ms)
    size = 2 * (power.shape[1] - 1)
    filters = mel_filters(rate, size, num_mels, low_hz, rate / 2 if high_hz is None else high_hz)
    bands: Floats = np.log(power @ filters.T + np.float32(_QUIET))
    return bands


@dataclass(frozen=True, slots=True)
class Pitch:
    """The fundamental frequency of a voice, frame by frame.

    Attributes
    ----------
    hz : NDArray of float32, shape (frames,)
        0 where there is no voice.
    strength : NDArray of float32, shape (frames,)
        Correlation of the wave with itself a period later, in [0, 1]; near 1 for a clear
        voice, 0 in silence.
    """

    hz: Floats
    strength: Floats

    def log2(self) -> Doubles:
        """Return octaves above 1 Hz, with straight lines through what is not voiced.

        Before the first voiced frame and after the last the curve is level; without any
        voiced frame it is 0.
        """
        voiced = np.flatnonzero(self.hz)
        if not len(voiced):
            return np.zeros(len(self.hz))
        return np.interp(np.arange(len(self.hz)), voiced, np.log2(self.hz[voiced]))


def pitch(
    signal: Floats, rate: int, hop_ms: float = 10.0, low_hz: float = 60.0, high_hz: float = 500.0
) -> Pitch:
    """Follow the pitch of a voice by autocorrelation and a path of least cost.

    Parameters
    ----------
    signal : NDArray of float32, shape (samples,)
    rate : int
        Samples a second (Hz).
    hop_ms : float
        From one frame to the next (milliseconds).
    low_hz, high_hz : float
        Where the pitch may lie. A frame is three periods of the lowest.

    Returns
    -------
    Pitch
        With as many frames as :func:`log_mel` has.

    Raises
    ------
    DataError
        If the frequencies are not in order, or too high for the rate.

    Notes
    -----
    Boersma, "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound", 1993: the autocorrelation of a windowed
    frame is divided by the window's own, its peaks are the candidates, and the Viterbi
    algorithm weighs their strengths against jumps. Below 16 kHz the autocorrelation is
    interpolated; everywhere its peaks are refined by a parabola, where Boersma takes a
    sinc. Voices of less than 30 ms are dropped.
    """
    if not 0 < low_hz < high_hz <= rate / 4:
        raise DataError(
            f"no pitch between {low_hz:g} and {high_hz:g} Hz at {rate} samples a second",
            mend=f"choose frequencies up to {rate / 4:g} Hz, the low one first",
        )
    hop, width = _samples(hop_ms, rate), int(3 * rate / low_hz)
    frames = _framed(signal, width, hop)
    loudest = float(np.abs(signal - signal.mean()).max(initial=0)) if len(signal) else 0.0
    parts = [
        _candidates(frames[start : start + _CHUNK], rate, low_hz, high_hz, loudest)
        for start in range(0, len(frames), _CHUNK)
    ]
    hz, strength, unvoiced = (np.concatenate(part) for part in zip(*parts, strict=True))
    hz, strength = _best_path(hz, strength, unvoiced, low_hz, hop_ms)
    hz = _without_short(hz, round(_SHORTEST_MS / hop_ms))
    return Pitch(hz.astype(np.float32), strength.astype(np.float32))


def _without_short(hz: Doubles, shortest: int) -> Doubles:
    """Return the course without voiced runs of fewer frames than `shortest`.

    A frame that only touches a sudden beginning can correlate with itself by chance.
    """
    edges = np.diff(np.concatenate(([0], hz > 0, [0])).astype(np.int64))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    long = ends - begins >= shortest
    inside = np.zeros(len(hz) + 1, np.int64)
    inside[begins[long]] = 1
    inside[ends[long]] -= 1
    return hz * np.cumsum(inside[:-1])


def _candidates(
    frames: Floats, rate: int, low_hz: float, high_hz: float, loudest: float
) -> tuple[Doubles, Doubles, Doubles]:
    """Return each frame's likeliest frequencies, their strengths, and that of no voice.

    A frame with fewer peaks than candidates has frequency 0 and strength -inf for the rest.
    """
    width = frames.shape[1]
    frames = frames - frames.mean(axis=1, keepdims=True)
    # Between two lags a peak looks lower than it is, and its octave is taken instead.
    finer = -(-_FINEST // rate)
    correlation = _autocorrelation(frames * np.hanning(width).astype(np.float32), finer)
    of_window = _autocorrelation(np.hanning(width)[None], finer)[0]
    rate *= finer
    shortest, longest = int(rate / high_hz), int(np.ceil(rate / low_hz))
    around = slice(shortest - 1, longest + 2)
    total = correlation[:, :1]
    near = correlation[:, around] / np.where(total > 0, total, 1)
    near *= of_window[0] / of_window[around]
    before, here, after = near[:, :-2], near[:, 1:-1], near[:, 2:]
    peaks = np.where((here > before) & (here >= after) & (here > 0), here, -np.inf)
    best = np.argpartition(-peaks, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    rows = np.arange(len(frames))[:, None]
    b, h, a = before[rows, best], here[rows, best], after[rows, best]
    bend = b - 2 * h + a
    shift = np.where(bend < 0, (b - a) / np.where(bend < 0, 2 * bend, 1), 0)
    found = np.isfinite(peaks[rows, best])
    strength = np.where(found, np.minimum(1, h - (b - a) * shift / 4), -np.inf)
    hz = np.where(found, rate / (shortest + best + shift), 0)
    loud = np.abs(frames).max(axis=1) / loudest if loudest > 0 else np.zeros(len(frames))
    unvoiced = _VOICING + np.maximum(0, 2 - loud * (1 + _VOICING) / _SILENCE)
    return hz, strength, unvoiced


def _autocorrelation(frames: NDArray[np.floating], finer: int) -> Doubles:
    """Return the correlations at lags of 1 / `finer` samples, up to the frames' width."""
    width = frames.shape[1]
    size = 1 << (2 * width - 1).bit_length()
    spectrum = np.fft.rfft(frames, size)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, finer * size)[:, : finer * width].astype(np.float64)


def _best_path(
    hz: Doubles, strength: Doubles, unvoiced: Doubles, low_hz: float, hop_ms: float
) -> tuple[Doubles, Doubles]:
    """Choose one candidate in each frame (Viterbi); the last one stands for no voice."""
    num = len(hz)
    octave = np.log2(np.maximum(hz, 1e-3))
    gain = np.concatenate((strength, unvoiced[:, None]), axis=1)
    # Twice the frequency correlates as well as the pitch does, so a higher one is favoured.
    gain[:, :-1] += _OCTAVE_COST * (octave - np.log2(low_hz))
    scale = 10.0 / hop_ms  # costs are stated for steps of 10 ms
    cost = np.full((_CANDIDATES + 1,) * 2, _VOICED_UNVOICED_COST * scale)
    cost[-1, -1] = 0
    origin = np.zeros(gain.shape, np.int64)
    total = gain[0]
    for t in range(1, num):
        cost[:-1, :-1] = np.abs(octave[t - 1][:, None] - octave[t]) * (_JUMP_COST * scale)
        through = total[:, None] - cost
        origin[t] = through.argmax(axis=0)
        total = through.max(axis=0) + gain[t]
    path = np.empty(num, np.int64)
    path[-1] = total.argmax()
    for t in range(num - 1, 0, -1):
        path[t - 1] = origin[t, path[t]]
    rows = np.arange(num)
    best = np.where(np.isfinite(strength), strength, 0).max(axis=1).clip(0, 1)
    padded = np.concatenate((hz, np.zeros((num, 1))), axis=1)
    return padded[rows, path], best
