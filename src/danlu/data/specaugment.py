"""Variations of log-mel frames, drawn each time that a clip is laid out for training.

None of them changes what a pitch is: masks and gain touch the mel bands alone, and a clip is
moved or stretched frame by frame, which carries every frame's pitch along unchanged. A tone
language can therefore be learnt from varied clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.recipe.audio import AudioAugment

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FrameAugmenter:
    """Varies standardised frames of several clips at once.

    Attributes
    ----------
    settings : AudioAugment
    hop_ms : float
        From one frame to the next (milliseconds).
    scale : NDArray of float32, shape (num_mels,)
        Standard deviation that each band was divided by (nats).
    """

    settings: AudioAugment
    hop_ms: float
    scale: Floats

    def __call__(
        self, frames: Floats, sizes: NDArray[np.int64], generator: np.random.Generator
    ) -> Floats:
        """Return varied frames, as many for each clip as there were.

        Parameters
        ----------
        frames : NDArray of float32, shape (total, num_mels + others)
            Clips end to end; the first columns are the mel bands.
        sizes : NDArray of int64, shape (n,)
            Frames of each clip.
        generator : numpy Generator
            All that is drawn; the draws do not depend on the frames.
        """
        num_mels = len(self.scale)
        frames = self._moved(frames, sizes, generator)
        decibels = generator.uniform(-1, 1, len(sizes)) * self.settings.gain_db
        nats = (decibels * np.log(10) / 10).astype(np.float32)
        frames[:, :num_mels] += np.repeat(nats, sizes)[:, None] / self.scale
        hidden = self._bands(sizes, num_mels, generator) | self._times(sizes, generator)[:, None]
        # 0 is the band's mean on the training split, so the masks say as little as they can.
        frames[:, :num_mels][hidden] = 0
        return frames

    def _moved(
        self, frames: Floats, sizes: NDArray[np.int64], generator: np.random.Generator
    ) -> Floats:
        """Shift and stretch clips in time about their middles; their edges are held."""
        stretch = 1 + self.settings.stretch * generator.uniform(-1, 1, len(sizes))
        shift = self.settings.shift_ms / self.hop_ms * generator.uniform(-1, 1, len(sizes))
        begins, last, inside = np.cumsum(sizes) - sizes, sizes - 1, _counted(sizes)
        middle = np.repeat(last / 2, sizes)
        source = middle + (inside - middle) * np.repeat(stretch, sizes) + np.repeat(shift, sizes)
        source = np.clip(source, 0, np.repeat(last, sizes))
        before = np.floor(source).astype(np.int64)
        after = np.minimum(before + 1, np.repeat(last, sizes))
        share = (source - before).astype(np.float32)[:, None]
        start = np.repeat(begins, sizes)
        moved: Floats = (1 - share) * frames[start + before] + share * frames[start + after]
        return moved

    def _bands(
        self, sizes: NDArray[np.int64], num_mels: int, generator: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Return which bands of each frame are hidden (frequency masking, Park et al., 2019)."""
        shape = (self.settings.frequency_masks, len(sizes), 1)
        widest = int(self.settings.frequency_width * num_mels)
        width = generator.integers(0, widest + 1, shape)
        start = np.floor(generator.random(shape) * (num_mels - width + 1))
        band = np.arange(num_mels)
        hidden = ((band >= start) & (band < start + width)).any(axis=0)
        return np.repeat(hidden, sizes, axis=0)

    def _times(self, sizes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return which frames are hidden (time masking, Park et al., 2019)."""
        shape = (self.settings.time_masks, len(sizes))
        longest = np.floor(self.settings.time_width * sizes)
        width = np.floor(generator.random(shape) * (longest + 1))
        start = np.floor(generator.random(shape) * (sizes - width + 1))
        frame = _counted(sizes)
        start, end = (np.repeat(edge, sizes, axis=1) for edge in (start, start + width))
        hidden: NDArray[np.bool_] = np.any((frame >= start) & (frame < end), axis=0)
        return hidden


def _counted(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, 2 … for each clip, end to end."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
