"""Sound files: decoded with care, and shown to people."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from danlu.errors import DataError

Floats = NDArray[np.float32]

MAX_CHANNELS = 8
FORMATS = "WAV, FLAC, OGG or MP3"
SILENT = 1e-3  # peak below which a clip counts as silent: 60 dB below full scale
_FULL_SCALE = 0.999
_RATES = (1000, 384_000)
_PICTURE_DB = 80.0
_CUT = re.compile(r"^\s*data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_ENDLESS = 0x7FFF_F000  # a WAV written to a pipe states no length, but the largest there is


class UnusableAudio(DataError):
    """A clip that cannot be used; `what` is the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded clip.

    Attributes
    ----------
    signal : NDArray of float32, shape (samples,)
        One channel at the rate that was asked for, about in [-1, 1].
    seconds : float
        Length of the file, before anything was cut.
    source_rate : int
        Samples a second in the file (Hz).
    channels : int
        In the file.
    cut : bool
        Whether the file goes on after the signal's end.
    peak : float
        Largest sample in any channel.
    clipped : int
        Samples at full scale, in all channels.
    """

    signal: Floats
    seconds: float
    source_rate: int
    channels: int
    cut: bool
    peak: float
    clipped: int

    @property
    def silent(self) -> bool:
        """Whether the loudest sample is 60 dB below full scale, or less."""
        return self.peak <= SILENT


def decode(
    data: bytes, rate: int, max_seconds: float = float("inf"), limit_seconds: float = 600.0
) -> Clip:
    """Decode a sound file.

    Parameters
    ----------
    data : bytes
        A WAV, FLAC, OGG (Vorbis or Opus) or MP3 file.
    rate : int
        Samples a second that are wanted (Hz).
    max_seconds : float
        What comes later is cut off, without being decoded.
    limit_seconds : float
        Longer files are refused before they are decoded.

    Returns
    -------
    Clip
        Channels are averaged. Silence and samples at full scale are counted.

    Raises
    ------
    UnusableAudio
        If the data are no such file, or a damaged, truncated, empty, too long one; with more
        than 8 channels; or samples that are not numbers. An MP3 that is cut off between two
        frames, and states no length, cannot be told from a whole one.

    Notes
    -----
    Resampling is soxr's at high quality: its aliases are 130 dB down.
    """
    if not _known(data):
        raise UnusableAudio(f"not a {FORMATS} file")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            total = _checked(file, data, limit_seconds)
            wanted = int(min(total, np.ceil(max_seconds * file.samplerate)))
            samples = file.read(wanted, dtype="float32", always_2d=True)
            source_rate, channels = file.samplerate, file.channels
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UnusableAudio("damaged or truncated: it cannot be decoded") from error
    if len(samples) < wanted:
        raise UnusableAudio(f"truncated: {len(samples)} of {wanted} samples are there")
    if not np.isfinite(samples).all():
        raise UnusableAudio("some samples are not finite numbers")
    size = np.abs(samples)
    signal = samples.mean(axis=1, dtype=np.float32)
    if source_rate != rate:
        signal = soxr.resample(signal, source_rate, rate)
    if not len(signal):
        raise UnusableAudio("too short to hold a sample at the rate wanted")
    return Clip(
        signal,
        seconds=total / source_rate,
        source_rate=source_rate,
        channels=channels,
        cut=wanted < total,
        peak=float(size.max()),
        clipped=int((size >= _FULL_SCALE).sum()),
    )


def _known(data: bytes) -> bool:
    """Look at the first bytes: the MP3 decoder searches anything else, and complains aloud."""
    wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    mp3 = data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")
    return wav or mp3 or data[:4] in (b"fLaC", b"OggS")


def _checked(file: soundfile.SoundFile, data: bytes, limit_seconds: float) -> int:
    """Return the samples that a file states for each channel, if it may be decoded."""
    total, rate = file.frames, file.samplerate
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UnusableAudio(f"{rate} samples a second; from {_RATES[0]} to {_RATES[1]} can be used")
    if file.channels > MAX_CHANNELS:
        raise UnusableAudio(f"{file.channels} channels, and the limit is {MAX_CHANNELS}")
    if file.format == "OGG" and not _ogg_ends(data):
        raise UnusableAudio("truncated: the last page is missing")
    if total <= 0:
        raise UnusableAudio("empty: it holds no sample")
    if total > limit_seconds * rate:
        raise UnusableAudio(f"{total / rate:.6g} seconds, and the limit is {limit_seconds:g}")
    stated = _CUT.search(file.extra_info) if file.format.startswith("WAV") else None
    if stated and int(stated[2]) < int(stated[1]) < _ENDLESS:
        raise UnusableAudio(f"truncated: {stated[2]} of {stated[1]} bytes are there")
    return int(total)


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page is whole and says that it is the last (RFC 3533, section 6)."""
    page = data.rfind(b"OggS")
    header = data[page : page + 27]
    if len(header) < 27 or not header[5] & 4:
        return False
    lengths = data[page + 27 : page + 27 + header[26]]
    return len(lengths) == header[26] and page + 27 + len(lengths) + sum(lengths) <= len(data)


def clip_html(clip: bytes | Floats, rate: int = 16_000, max_seconds: float = 10.0) -> str:
    """Return an HTML element that plays a clip, the sound inside.

    Parameters
    ----------
    clip : bytes or NDArray of float32, shape (samples,)
        A sound file, or a signal; what lies beyond [-1, 1] is clipped.
    rate : int
        Samples a second: of the signal, or to which a file is brought (Hz).
    max_seconds : float
        Only the beginning is kept.

    Returns
    -------
    str
        16-bit FLAC in a ``data:`` address, about 16 kB a second at 16 kHz. A file is encoded
        anew, so that what else it held (names, places) stays out of the report.
    """
    signal = decode(clip, rate, max_seconds).signal if isinstance(clip, bytes) else clip
    signal = np.clip(signal[: int(max_seconds * rate)], -1, 1)
    stream = io.BytesIO()
    soundfile.write(stream, signal, rate, format="FLAC", subtype="PCM_16")
    address = base64.b64encode(stream.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/flac;base64,{address}"></audio>'


def picture(log_mel: Floats) -> NDArray[np.uint8]:
    """Return a grey picture of log-mel frames: time to the right, low bands at the bottom.

    Parameters
    ----------
    log_mel : NDArray of float32, shape (frames, num_mels)

    Returns
    -------
    NDArray of uint8, shape (num_mels, frames)
        255 is the clip's loudest band; 0 lies 80 dB below it, or further.
    """
    decibels = 10 / np.log(10) * (log_mel - log_mel.max())
    grey = np.clip(1 + decibels / _PICTURE_DB, 0, 1) * 255
    return np.ascontiguousarray(np.rint(grey).astype(np.uint8).T[::-1])
