"""The part of a recipe that says how sounds become frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from danlu.recipe.base import Count, Fraction, Section

Seconds = Annotated[float, Field(gt=0)]


class AudioAugment(Section):
    """How training clips are varied each time they are seen. None of it changes the pitch."""

    frequency_masks: Count = 2
    """Runs of neighbouring bands taken out (SpecAugment)."""
    frequency_width: Fraction = 0.15
    """The widest of them (share of the bands)."""
    time_masks: Count = 2
    """Runs of neighbouring frames whose bands are taken out (SpecAugment)."""
    time_width: Fraction = 0.1
    """The longest of them (share of the clip)."""
    gain_db: Annotated[float, Field(ge=0, le=40)] = 6.0
    """Louder or softer by at most so much (dB)."""
    shift_ms: Annotated[float, Field(ge=0, le=1000)] = 30.0
    """Earlier or later by at most so much (milliseconds)."""
    stretch: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Faster or slower by at most so much (share)."""


class Audio(Section):
    """From sound files to log-mel frames."""

    rate: Annotated[int, Field(ge=4000, le=96_000)] = 16_000
    """Every clip is brought to so many samples a second (Hz), in one channel."""
    max_seconds: Seconds = 10.0
    """Longer clips are cut, and counted (seconds)."""
    limit_seconds: Seconds = 600.0
    """Clips longer than this are refused before they are decoded (seconds)."""
    num_mels: Annotated[int, Field(ge=4, le=256)] = 80
    """Bands, evenly spaced on the mel scale (Slaney's)."""
    window_ms: Annotated[float, Field(ge=2, le=1000)] = 25.0
    """Length of a frame (milliseconds)."""
    hop_ms: Annotated[float, Field(ge=1, le=500)] = 10.0
    """From one frame to the next (milliseconds)."""
    low_hz: Annotated[float, Field(ge=0)] = 20.0
    """Where the lowest band begins (Hz)."""
    high_hz: Annotated[float, Field(gt=0)] | None = None
    """Where the highest band ends (Hz): half the rate."""
    stack: Annotated[int, Field(gt=0, le=64)] = 2
    """Frames that the model sees as one position."""
    pitch: Literal["none", "relative", "absolute"] = "none"
    """Also follow the voice's pitch, for tones: relative to the clip's median, and how clear it
    is; `absolute` adds the median itself, which tells speakers apart."""
    augment: AudioAugment = AudioAugment()
    """Variations in training."""
