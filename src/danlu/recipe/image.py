"""The section of a recipe whose rows are images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from danlu.recipe.base import Count, Positive, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Section):
    """How training images are changed at random; not at all unless asked."""

    flip: bool = False
    """Every second image stands mirrored, left for right."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turned by up to so many degrees either way."""
    scale: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Larger or smaller by up to this share: 0.1 is a factor between 1/1.1 and 1.1."""
    shift: Share = 0.0
    """Moved by up to this share of the sides."""
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Slanted along the rows by up to this share of the height."""
    crop: Count = 0
    """A random crop after so many pixels of padding on each side."""
    elastic: Annotated[float, Field(ge=0)] = 0.0
    """Elastic distortion: how far a pixel is moved along each axis (pixels, root mean square)."""
    elastic_smoothness: Annotated[float, Field(gt=0)] = 4.0
    """Over how far neighbours are moved together (pixels, the Gaussian's deviation)."""
    erase: Share = 0.0
    """A square of this share of the sides is blackened (cutout)."""
    randaugment: Count = 0
    """So many operations of RandAugment for each image."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 5.0
    """How far those go, from 0 to 10."""
    edges: Literal["black", "repeat"] = "black"
    """What comes into view from beyond the edges."""


class Image(Section):
    """From image files to patches."""

    height: Positive | None = None
    """What every image is brought to (pixels); by default the size that most images have."""
    width: Positive | None = None
    """As height."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is RGB; by default 1 if every image is grey."""
    patch: Positive = 4
    """Side of the patches that a Transformer sees (pixels); it divides height and width. Other
    backbones take the image as a whole."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image of other proportions is brought to size: cut at its sides, filled up with
    black, or stretched."""
    max_pixels: Positive = 50_000_000
    """Larger images are refused before they are decoded, for they may be bombs."""
    augment: Augment = Augment()
    """Changes at random."""
