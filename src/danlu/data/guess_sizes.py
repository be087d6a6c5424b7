"""``danlu new`` for images and sounds: what fits their number and their size.

A recipe is to train in about two minutes on two cores. The rates below were measured with these
very networks on such a machine; a slower one takes longer, and nothing else depends on them.
"""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import soundfile

from danlu.data.audio import refusal
from danlu.data.guess_base import Guess, quote
from danlu.data.image import usual_shape
from danlu.data.raster import fault
from danlu.errors import DataError
from danlu.recipe.audio import Audio

_SECONDS = 120  # that training may take
_PIXELS, _POSITIONS = 1_500_000, 13_000  # a second, forwards and backwards
_EPOCHS = (4, 40)
_SIDES = (64, 48, 32)  # pixels that the longer side may have
_SEEN = 15  # times that each image is to be seen at the least, before it is made smaller
_SHARP = 16  # pixels of the shorter side from which on images may be moved and turned
_MOVED = """[image.augment]\t# training images are moved and turned a little
shift = 0.08
rotate_degrees = 8
flip = false\t# true, if a mirrored image shows the same

"""
_LONGEST = 10.0  # seconds of a clip
_AT_MOST = 100  # positions of a clip


@dataclass(frozen=True, kw_only=True)
class MediaGuess(Guess):
    """Images or sounds.

    Attributes
    ----------
    content : str or None
        Column of a table that holds them, or where they lie.
    split : str
        Rule.
    hold_out : str or None
        The group that is the test split.
    """

    content: str | None
    split: str
    hold_out: str | None

    def reads(self) -> str:
        """Name the column of the files."""
        return f"content = {quote(self.content)}\n" if self.content else ""

    def sections(self) -> str:
        """Return the sections behind ``[data]``."""
        held = f"hold_out = [{quote(self.hold_out)}]\n" if self.hold_out else "test = 0.2\n"
        least = "test.accuracy.low - majority > 0"
        require = least if self.task == "classify" else "test.mae.high - mean < 0"
        return f"""
[data.split]
by = {quote(self.split)}
{held}validation = 0.1

{self.model().strip()}

[gate]\t# what must hold before the model is released; `- baseline` asks
require = ["{require}"]\t# for more than the strongest of the classical models
"""

    @abstractmethod
    def model(self) -> str:
        """Return the sections from this kind's own to training."""


@dataclass(frozen=True, kw_only=True)
class ImageGuess(MediaGuess):
    """Images.

    Attributes
    ----------
    size : tuple of int
        Height and width that they are brought to (pixels).
    resized : bool
        Whether that is another than they have.
    epochs : int
    """

    modality: ClassVar[str] = "image"

    size: tuple[int, int]
    resized: bool
    epochs: int

    @classmethod
    def of(cls, blobs: Sequence[bytes], reasons: list[str], **found: Any) -> Self:
        """Choose by the sizes of a sample, and by how many images there are."""
        good = _readable(blobs, fault, reasons, "images")
        height, width, channels = usual_shape(good)
        longest = max(height, width)
        side = next(
            (s for s in _SIDES if found["rows"] * s * s * _SEEN <= _SECONDS * _PIXELS), _SIDES[-1]
        )
        size, resized = (height, width), longest > side
        if resized:
            size = (max(8, round(height * side / longest)), max(8, round(width * side / longest)))
            reasons.append(
                f"size: most have {height} × {width} pixels; made {size[0]} × {size[1]}, so that "
                "training takes minutes"
            )
        else:
            reasons.append(f"size: {height} × {width} pixels, as most of them are")
        epochs = _epochs(found["rows"] * math.prod(size), _PIXELS)
        colours = "grey" if channels == 1 else "in colour"
        reasons.append(f"epochs: {epochs}, for about {found['rows']:,} images, {colours}")
        return cls(reasons=reasons, size=size, resized=resized, epochs=epochs, **found)

    def model(self) -> str:
        """Return the sections from the images' own to training."""
        height, width = self.size
        section = f"[image]\t# pixels\nheight = {height}\nwidth = {width}\n\n" * self.resized
        if min(self.size) >= _SHARP:  # a smaller one that is turned is but a blur
            section += _MOVED
        depth = min(4, int(math.log2(min(self.size))))
        return f"""{section}[model]
backbone = "cnn"
depth = {depth}\t# stages, each at half the height and width of the one before
width = {64 if self.rows < 2000 else 96}

[pretrain]
objective = "none"

[finetune]
epochs = {self.epochs}
batch_size = {32 if self.rows < 5000 else 128}
optimizer = "adamw"
learning_rate = 2e-3
"""


@dataclass(frozen=True, kw_only=True)
class SoundGuess(MediaGuess):
    """Sounds.

    Attributes
    ----------
    rate : int
        Samples a second that they are brought to (Hz).
    seconds : float
        Longest clip.
    stack : int
        Frames of 10 ms at a position.
    epochs : int
    """

    modality: ClassVar[str] = "audio"

    rate: int
    seconds: float
    stack: int
    epochs: int

    @classmethod
    def of(cls, blobs: Sequence[bytes], reasons: list[str], **found: Any) -> Self:
        """Choose by the lengths and rates of a sample, and by how many clips there are."""
        usual = Audio()
        good = _readable(blobs, lambda b: refusal(b, usual), reasons, "sounds")
        rates, lengths = zip(*map(_heard, good), strict=True)
        rate = min(usual.rate, Counter(rates).most_common(1)[0][0])
        longest = float(np.max(lengths))
        seconds = min(_LONGEST, math.ceil(2 * longest) / 2)
        stack = max(2, math.ceil(100 * seconds / _AT_MOST))
        positions = found["rows"] * 100 * min(float(np.mean(lengths)), seconds) / stack
        epochs = _epochs(positions, _POSITIONS)
        cut = sum(length > seconds for length in lengths)
        reasons.append(
            f"length: up to {longest:.1f} s"
            + (f"; {cut} of {len(good)} clips are longer than {seconds:g} s and cut" if cut else "")
        )
        reasons.append(f"rate: {rate:,} Hz, for most clips have {max(rates, key=rates.count):,}")
        reasons.append(f"epochs: {epochs}, for about {found['rows']:,} clips")
        return cls(reasons=reasons, rate=rate, seconds=seconds, stack=stack, epochs=epochs, **found)

    def model(self) -> str:
        """Return the sections from the sounds' own to training."""
        return f"""[audio]
rate = {self.rate}\t# Hz
max_seconds = {self.seconds:g}\t# longer clips are cut, and counted
stack = {self.stack}\t# frames of 10 ms at a position
pitch = "none"\t# relative, if the course of a voice matters, as tones do

[model]
backbone = "cnn"
depth = 4
width = {64 if self.rows < 1000 else 128}
window = 5

[pretrain]
objective = "none"

[finetune]
epochs = {self.epochs}
optimizer = "adamw"
learning_rate = 2e-3
layer_dropout = 0.1
"""


def _heard(blob: bytes) -> tuple[int, float]:
    """Return a clip's rate (Hz) and length (seconds)."""
    told = soundfile.info(io.BytesIO(blob))
    return int(told.samplerate), float(told.frames / told.samplerate)


def _epochs(each: float, rate: float) -> int:
    """Return how often all may be seen in the time that there is."""
    fewest, most = _EPOCHS
    return int(min(most, max(fewest, _SECONDS * rate / max(1.0, each))))


def _readable(
    blobs: Sequence[bytes], fault: Callable[[bytes], str | None], reasons: list[str], what: str
) -> list[bytes]:
    """Return the files that can be read; count the others, and say why they cannot.

    Raises
    ------
    DataError
        If none can.
    """
    faults = [fault(blob) for blob in blobs]
    told = Counter(reason for reason in faults if reason)
    why = ", ".join(f"{reason} ({n})" for reason, n in told.most_common(3))
    good = [blob for blob, reason in zip(blobs, faults, strict=True) if reason is None]
    if not good:
        raise DataError(f"none of the {len(blobs)} {what} looked at can be read: {why}")
    if told:
        reasons.append(f"unreadable: {told.total()} of {len(blobs)} looked at, which a run sets "
                       f"aside: {why}")  # fmt: skip
    return good
