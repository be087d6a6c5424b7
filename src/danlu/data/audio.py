"""Sounds as one kind of data: clips become positions of a few log-mel frames each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.batch import Batch
from danlu.data.acoustics import Pitch, log_mel, mel_filters, pitch
from danlu.data.clips import Clip, Floats, UnusableAudio, decode
from danlu.data.modality import NUM_SPECIAL, Spec, lay_end_to_end
from danlu.data.specaugment import FrameAugmenter
from danlu.data.transcripts import positions_needed
from danlu.errors import DataError
from danlu.recipe.audio import Audio

FILE = "audio.json"
FRAME_ID = NUM_SPECIAL  # the only id beside the special ones: "here stand frames"
_PITCH_COLUMNS = {"none": 0, "relative": 2, "absolute": 3}
_POINTS = 10  # of a contour, in the statistics of a clip
_LOWEST_PITCH, _HIGHEST_PITCH = 60.0, 500.0  # Hz; adult voices


@dataclass(frozen=True, slots=True)
class AudioCounts:
    """What was found in the clips of a split, and done to them.

    Attributes
    ----------
    clips : int
    seconds : float
        Before anything was cut.
    cut : int
        Clips longer than the recipe keeps.
    silent : int
        Clips whose peak lies 60 dB below full scale, or more.
    clipped : int
        Clips with samples at full scale.
    unvoiced : int
        Clips in which no pitch was found; 0 where none was looked for.
    """

    clips: int
    seconds: float
    cut: int
    silent: int
    clipped: int
    unvoiced: int


@dataclass(frozen=True, eq=False)
class AudioDocuments:
    """Encoded clips, memory-mapped: their positions end to end and where each begins.

    Attributes
    ----------
    values_UK : NDArray of float32, shape (total, K)
        Standardised frames, `stack` to a position; the last frame of a clip is repeated
        until its last position is full.
    offsets : NDArray of int64, shape (n + 1,)
    counts : AudioCounts
    augmenter : FrameAugmenter
    stack : int
    """

    values_UK: Floats
    offsets: NDArray[np.int64]
    counts: AudioCounts
    augmenter: FrameAugmenter
    stack: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Floats:
        """Return the frames of one clip, of shape (frames, columns)."""
        values = self.values_UK[self.offsets[row] : self.offsets[row + 1]]
        return values.reshape(len(values) * self.stack, -1)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Positions of each document."""
        return np.diff(self.offsets)

    def lay(self, rows: NDArray[np.int64], generator: np.random.Generator | None = None) -> Batch:
        """Lay clips end to end in one row; a generator asks for augmentation."""
        sizes = self.sizes[rows]
        frames = np.concatenate([self[row] for row in rows])
        if generator is not None:
            frames = self.augmenter(frames, sizes * self.stack, generator)
        total = int(sizes.sum())
        ids = np.full(total, FRAME_ID)
        return lay_end_to_end(ids, sizes, rows, frames.reshape(total, -1), np.arange(total))

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.frames.npy``, ``NAME.offsets.npy`` and ``NAME.counts.json``."""
        np.save(folder / f"{name}.frames.npy", self.values_UK)
        np.save(folder / f"{name}.offsets.npy", self.offsets)
        (folder / f"{name}.counts.json").write_text(json.dumps(asdict(self.counts)))


@dataclass(frozen=True, eq=False)
class AudioEncoder:
    """Turns sound files into standardised frames, in training and in serving alike.

    Attributes
    ----------
    settings : Audio
    mean, scale : NDArray of float32, shape (num_mels + pitch columns,)
        Of every column over the frames of the training split.
    """

    settings: Audio
    mean: Floats
    scale: Floats

    @property
    def spec(self) -> Spec:
        """One id, whose value is `stack` frames."""
        return Spec(NUM_SPECIAL + 1, self.settings.stack * len(self.mean), 1, shared=True)

    @classmethod
    def fit(cls, records: Sequence[bytes], settings: Audio) -> AudioEncoder:
        """Measure mean and standard deviation of each column on the training split.

        Raises
        ------
        UnusableAudio
            Of the first clip that cannot be used; see :func:`refusal`.
        DataError
            If there is no clip, or the bands do not fit the rate and the window.
        """
        _check(settings)
        width = settings.num_mels + _PITCH_COLUMNS[settings.pitch]
        frames, total, squares = 0, np.zeros(width), np.zeros(width)
        for columns, _ in _analysed(records, settings):
            frames += len(columns)
            total += columns.sum(axis=0, dtype=np.float64)
            squares += np.square(columns, dtype=np.float64).sum(axis=0)
        if not frames:
            raise DataError("there is no clip to learn from")
        mean = total / frames
        variance = squares / frames - mean**2
        # A column that never changes is left as it is; divided by rounding errors it would not.
        scale = np.where(variance > 1e-8, np.sqrt(np.maximum(variance, 0)), 1.0)
        return cls(settings, mean.astype(np.float32), scale.astype(np.float32))

    def encode(self, records: Sequence[bytes]) -> AudioDocuments:
        """Encode sound files; raises UnusableAudio for one that cannot be used."""
        parts, sizes, found = [], [], []
        for columns, facts in _analysed(records, self.settings):
            parts.append(self._stacked((columns - self.mean) / self.scale))
            sizes.append(len(parts[-1]))
            found.append(facts)
        if not parts:
            raise DataError("there is no clip to encode")
        seconds, *flags = np.asarray(found).sum(axis=0)
        counts = AudioCounts(len(parts), float(seconds), *map(int, flags))
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        return self._documents(np.concatenate(parts), offsets, counts)

    def _stacked(self, frames: Floats) -> Floats:
        stack = self.settings.stack
        frames = np.pad(frames, ((0, -len(frames) % stack), (0, 0)), mode="edge")
        return frames.reshape(len(frames) // stack, -1)

    def _documents(
        self, values_UK: Floats, offsets: NDArray[np.int64], counts: AudioCounts
    ) -> AudioDocuments:
        settings = self.settings
        scale = self.scale[: settings.num_mels]
        augmenter = FrameAugmenter(settings.augment, settings.hop_ms, scale)
        return AudioDocuments(values_UK, offsets, counts, augmenter, settings.stack)

    def load_documents(self, folder: Path, name: str) -> AudioDocuments:
        """Map what :meth:`AudioDocuments.save` wrote."""
        values_UK = np.load(folder / f"{name}.frames.npy", mmap_mode="r")
        counts = AudioCounts(**json.loads((folder / f"{name}.counts.json").read_text()))
        return self._documents(values_UK, np.load(folder / f"{name}.offsets.npy"), counts)

    def columns(self, frames: Floats) -> Floats:
        """Return frames as they were before standardising, of shape (n, columns)."""
        return frames * self.scale + self.mean

    def save(self, folder: Path) -> None:
        """Write ``audio.json``."""
        kept = {
            "settings": self.settings.model_dump(mode="json"),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }
        (folder / FILE).write_text(json.dumps(kept, indent=1))

    @classmethod
    def load(cls, folder: Path) -> AudioEncoder:
        """Read what :meth:`save` wrote."""
        kept = json.loads((folder / FILE).read_text())
        mean, scale = (np.asarray(kept[name], np.float32) for name in ("mean", "scale"))
        return cls(Audio.model_validate(kept["settings"]), mean, scale)


def refusal(record: bytes, settings: Audio, transcript: str | None = None) -> str | None:
    """Return why a clip cannot be used, in a few words, or None.

    Parameters
    ----------
    record : bytes
    settings : Audio
    transcript : str, optional
        What is said in it. A clip that would be cut, or that has fewer positions than it takes
        to write this, is then refused, too.
    """
    try:
        clip = _decoded(record, settings)
    except UnusableAudio as error:
        return error.what
    if transcript is None:
        return None
    if clip.cut:
        return f"longer than {settings.max_seconds:g} s, of which alone its transcript would be"
    frames = 1 + len(clip.signal) // round(settings.hop_ms * settings.rate / 1000)
    if -(-frames // settings.stack) < positions_needed(transcript):
        return "too short for its transcript"
    return None


def statistics(encoder: AudioEncoder, documents: AudioDocuments) -> NDArray[np.float64]:
    """Describe each clip by so many numbers, however long it is, for classical models.

    Parameters
    ----------
    encoder : AudioEncoder
    documents : AudioDocuments
        Encoded by it.

    Returns
    -------
    NDArray of float64, shape (n, d)
        Of each band the mean, the standard deviation and the mean absolute step from frame
        to frame (nats); the clip's length (seconds); its loudness below its loudest frame at
        10 points (nats). With pitch also: its course at 10 points from the first voiced frame
        to the last (octaves), how clear it is at 10 points of the clip, where the voice begins
        and how long it lasts (shares of the clip), and the median (octaves), if it was asked for.
    """
    return np.stack([_described(documents[row], encoder) for row in range(len(documents))])


def _described(frames: Floats, encoder: AudioEncoder) -> NDArray[np.float64]:
    settings = encoder.settings
    columns = encoder.columns(frames).astype(np.float64)
    bands, others = np.split(columns, [settings.num_mels], axis=1)
    steps = np.abs(np.diff(bands, axis=0)).mean(axis=0) if len(bands) > 1 else 0 * bands[0]
    loudness = bands.mean(axis=1)
    seconds = len(bands) * settings.hop_ms / 1000
    contour = _resampled(loudness - loudness.max())
    parts = [bands.mean(axis=0), bands.std(axis=0), steps, [seconds], contour]
    if settings.pitch != "none":
        voiced = np.flatnonzero(others[:, 1] > 0.01)  # is 0 elsewhere, but for rounding
        first, last = (voiced[0], voiced[-1] + 1) if len(voiced) else (0, len(others))
        span = np.array([first, last - first]) / len(others)
        parts += [_resampled(others[first:last, 0]), _resampled(others[:, 1]), span, others[0, 2:]]
    return np.concatenate(parts)


def _resampled(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a curve at evenly spaced points, its ends among them."""
    return np.interp(np.linspace(0, len(curve) - 1, _POINTS), np.arange(len(curve)), curve)


def _check(settings: Audio) -> None:
    """Raise before the first clip is decoded if the bands do not fit the rate and the window."""
    width = round(settings.window_ms * settings.rate / 1000)
    high_hz = settings.high_hz or settings.rate / 2
    size = 1 << (width - 1).bit_length()
    mel_filters(settings.rate, size, settings.num_mels, settings.low_hz, high_hz)


def _decoded(record: bytes, settings: Audio) -> Clip:
    return decode(record, settings.rate, settings.max_seconds, settings.limit_seconds)


def _analysed(
    records: Sequence[bytes], settings: Audio
) -> Iterator[tuple[Floats, tuple[float, bool, bool, bool, bool]]]:
    """Yield each clip's columns, and its seconds, cut, silent, clipped and unvoiced."""
    for row, record in enumerate(records):
        try:
            clip = _decoded(record, settings)
        except UnusableAudio as error:
            raise UnusableAudio(
                error.what, where=f"clip {row}", mend="replace the file or leave it out"
            ) from error
        bands = log_mel(
            clip.signal, settings.rate, settings.num_mels, settings.window_ms,
            settings.hop_ms, settings.low_hz, settings.high_hz,
        )  # fmt: skip
        unvoiced = False
        if settings.pitch != "none":
            voice = pitch(
                clip.signal, settings.rate, settings.hop_ms, _LOWEST_PITCH, _HIGHEST_PITCH
            )
            unvoiced = not voice.hz.any()
            bands = np.concatenate((bands, _pitch_columns(voice, settings.pitch)), axis=1)
        yield bands, (clip.seconds, clip.cut, clip.silent, clip.clipped > 0, unvoiced)


def _pitch_columns(voice: Pitch, kind: str) -> Floats:
    """Return the pitch in octaves about the clip's median, its clearness, and the median."""
    octaves, voiced = voice.log2(), voice.hz > 0
    median = float(np.median(octaves[voiced])) if voiced.any() else 0.0
    relative = octaves - median if voiced.any() else octaves
    columns = (relative, voice.strength * voiced, np.full(len(octaves), median))
    return np.stack(columns[: _PITCH_COLUMNS[kind]], axis=1).astype(np.float32)
