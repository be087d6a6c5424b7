"""Pictures changed at random, a batch at a time, such that what they show stays the same.

Images are float32 in [0, 1], laid out (N, C, H, W); x points to the right and y downwards.
Everything that moves pixels (rotation, scaling, shear, shift, crop, elastic distortion) is put
into one warp, such that an image is interpolated once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Edges = Literal["black", "repeat"]

ANGLE, LOG_SCALE, SHEAR_X, SHEAR_Y, SHIFT_X, SHIFT_Y = range(6)
"""Columns of an image's moves: radians, natural logarithm, tangents, pixels."""

_MOVES = {"rotate": ANGLE, "shear_x": SHEAR_X, "shear_y": SHEAR_Y, "x": SHIFT_X, "y": SHIFT_Y}
_SHADES = ("brightness", "contrast", "sharpness", "posterise", "erase")
OPERATIONS = ("none", *_MOVES, *_SHADES)
"""What RandAugment chooses from; see :class:`Augment`."""


@dataclass(frozen=True, slots=True)
class Augment:
    """What is changed at random, and how far; nothing by default.

    Attributes
    ----------
    flip : bool
        Every second image stands mirrored, left for right.
    rotate_degrees : float
        Turned by up to so many degrees either way; in [0, 180].
    scale : float
        Larger or smaller by up to this share, either way alike: 0.1 is a factor between
        1/1.1 and 1.1; at least 0.
    shift : float
        Moved by up to this share of the sides, along each; in [0, 1].
    shear : float
        Slanted along x by up to this share of the height; in [0, 1).
    crop : int
        As a random crop after so many pixels of padding on each side: moved by whole pixels.
    elastic : float
        Elastic distortion (Simard et al., 2003): root mean square of the displacement along
        each axis (pixels). The paper's digits had 1.4 (its α = 34 for σ = 4).
    elastic_smoothness : float
        Its σ (pixels): over how far neighbours move together.
    erase : float
        Cutout (DeVries & Taylor, 2017): side of a square that is blackened, as a share of the
        image's sides. Its centre is anywhere in the image; in [0, 1].
    randaugment : int
        RandAugment (Cubuk et al., 2019): so many of ``OPERATIONS`` for each image. What moves
        pixels is joined to the other moves, and comes before what changes shades.
    magnitude : float
        How far these go, in [0, 10]. At 10: 30°, a shear of 0.3, a shift of 0.45, factors of
        0.1 or 1.9 for brightness, contrast and sharpness, 4 bits, a square of half the side.
    edges : {"black", "repeat"}
        What comes into view from beyond the edges.
    """

    flip: bool = False
    rotate_degrees: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    crop: int = 0
    elastic: float = 0.0
    elastic_smoothness: float = 4.0
    erase: float = 0.0
    randaugment: int = 0
    magnitude: float = 5.0
    edges: Edges = "black"

    def __call__(self, images: Tensor, generator: np.random.Generator) -> Tensor:
        """Return changed images.

        Parameters
        ----------
        images : Tensor of float32, shape (N, C, H, W)
            In [0, 1]; left as they are.
        generator : numpy.random.Generator
            All that is drawn is drawn from it.
        """
        n, _, height, width = images.shape
        if self.flip:
            mirrored = torch.from_numpy(generator.random(n) < 0.5)[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
        moves = self._moves(n, height, width, generator)
        chosen = generator.integers(len(OPERATIONS), size=(self.randaugment, n))
        signs = generator.choice([-1.0, 1.0], (self.randaugment, n))
        moves += self._chosen_moves(chosen, signs, height, width)
        bend = None
        if self.elastic:
            bend = displacement(
                (n, height, width), self.elastic, self.elastic_smoothness, generator
            )
        if bend is not None or moves.any():
            images = warp(images, matrices(moves), self.edges, bend)
        for operations, sign in zip(chosen, signs, strict=True):
            images = self._shade(images, operations, sign, generator)
        return erase(images, self.erase, generator) if self.erase else images

    def _moves(
        self, n: int, height: int, width: int, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw each image's moves, of shape (n, 6)."""
        reach = np.zeros(6)
        reach[ANGLE] = np.deg2rad(self.rotate_degrees)
        reach[LOG_SCALE] = np.log1p(self.scale)
        reach[SHEAR_X] = self.shear
        reach[[SHIFT_X, SHIFT_Y]] = self.shift * width, self.shift * height
        moves = generator.uniform(-1, 1, (n, 6)) * reach
        if self.crop:
            moves[:, [SHIFT_X, SHIFT_Y]] += generator.integers(-self.crop, self.crop + 1, (n, 2))
        return moves

    def _chosen_moves(
        self, chosen: NDArray[np.int64], signs: NDArray[np.float64], height: int, width: int
    ) -> NDArray[np.float64]:
        """Return the moves that RandAugment chose, of shape (n, 6)."""
        reach = {
            "rotate": np.deg2rad(30),
            "shear_x": 0.3,
            "shear_y": 0.3,
            "x": 0.45 * width,
            "y": 0.45 * height,
        }
        moves = np.zeros((chosen.shape[1], 6))
        for name, column in _MOVES.items():
            times = np.where(chosen == OPERATIONS.index(name), signs, 0.0).sum(0)
            moves[:, column] = times * reach[name] * self.magnitude / 10
        return moves

    def _shade(
        self,
        images: Tensor,
        operations: NDArray[np.int64],
        signs: NDArray[np.float64],
        generator: np.random.Generator,
    ) -> Tensor:
        """Change the shades of each image by the operation chosen for it."""
        images = images.clone()
        share = self.magnitude / 10
        for name in _SHADES:
            rows = np.flatnonzero(operations == OPERATIONS.index(name))
            if not len(rows):
                continue
            some = images[rows]
            factor = torch.from_numpy(1 + 0.9 * share * signs[rows]).float()[:, None, None, None]
            if name == "brightness":
                images[rows] = brightness(some, factor)
            elif name == "contrast":
                images[rows] = contrast(some, factor)
            elif name == "sharpness":
                images[rows] = sharpness(some, factor)
            elif name == "posterise":
                images[rows] = posterise(some, 8 - round(4 * share))
            else:
                images[rows] = erase(some, 0.5 * share, generator)
        return images


def matrices(moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the affine maps, from places in the new image to places in the old one.

    Parameters
    ----------
    moves : NDArray of float64, shape (N, 6)
        An image is scaled, sheared, turned counter-clockwise and shifted, in this order.

    Returns
    -------
    NDArray of float64, shape (N, 2, 3)
        On columns (x, y, 1), in pixels from the centre of the image.
    """
    cosine, sine = np.cos(moves[:, ANGLE]), np.sin(moves[:, ANGLE])
    turn = np.stack([cosine, sine, -sine, cosine], -1).reshape(-1, 2, 2)
    shear = np.tile(np.eye(2), (len(moves), 1, 1))
    shear[:, 0, 1], shear[:, 1, 0] = moves[:, SHEAR_X], moves[:, SHEAR_Y]
    back = np.linalg.inv(turn @ shear * np.exp(moves[:, LOG_SCALE])[:, None, None])
    offset = -back @ moves[:, [SHIFT_X, SHIFT_Y], None]
    return np.concatenate([back, offset], -1)


def warp(
    images: Tensor,
    matrix: NDArray[np.float64],
    edges: Edges = "black",
    bend: NDArray[np.float32] | None = None,
) -> Tensor:
    """Take each pixel from another place, between pixels by bilinear interpolation.

    Parameters
    ----------
    images : Tensor of float32, shape (N, C, H, W)
    matrix : NDArray of float64, shape (N, 2, 3)
        From places in the new image to places in the old one; see :func:`matrices`.
    edges : {"black", "repeat"}
    bend : NDArray of float32, shape (N, H, W, 2), optional
        Added to the places in the old image (x, y; pixels).
    """
    height, width = images.shape[-2:]
    half = np.array([width / 2, height / 2])  # torch measures from -1 to 1
    theta = matrix * np.append(half, 1.0) / half[:, None]
    grid = F.affine_grid(torch.from_numpy(theta).float(), list(images.shape), align_corners=False)
    if bend is not None:
        grid = grid + torch.from_numpy(bend / half.astype(np.float32))
    padding = "zeros" if edges == "black" else "border"
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def displacement(
    shape: tuple[int, int, int], size: float, smoothness: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the displacement fields of an elastic distortion (Simard et al., 2003).

    Parameters
    ----------
    shape : tuple of int
        N, H and W.
    size : float
        Root mean square along each axis (pixels).
    smoothness : float
        Standard deviation of the Gaussian that smooths uniform noise (pixels); above 0.

    Returns
    -------
    NDArray of float32, shape (N, H, W, 2)
    """
    n, height, width = shape
    reach = int(np.ceil(3 * smoothness))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smoothness) ** 2)
    kernel /= kernel.sum()
    # The noise reaches beyond the image, or its edges would move less than its middle.
    noise = generator.random((n, 2, height + 2 * reach, width + 2 * reach), np.float32)
    # 1/3 is the variance of what is uniform between -1 and 1.
    strength = size * np.sqrt(3) / (kernel**2).sum()
    down, across = (torch.from_numpy(_band(kernel, side)) for side in (height, width))
    field = down * (2 * strength) @ (torch.from_numpy(noise) - 0.5) @ across.T
    return np.asarray(field.permute(0, 2, 3, 1), np.float32)


def _band(kernel: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return the matrix that convolves a column with a kernel where it lies fully inside."""
    band = np.zeros((side, side + len(kernel) - 1), np.float32)
    for row in range(side):
        band[row, row : row + len(kernel)] = kernel
    return band


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Return images as many times as bright; `factor` has shape (N, 1, 1, 1)."""
    return (images * factor).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return images whose pixels are `factor` times as far from their mean grey."""
    grey = images
    if images.shape[1] == 3:  # luma of ITU-R BT.601
        grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    mean = grey.mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Return images blurred (factor 0), as they are (1) or sharpened (2); not at the rim.

    The blur gives the pixel itself a weight of 5 and each of its eight neighbours 1.
    """
    if min(images.shape[-2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3)
    kernel[..., 1, 1] = 5
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=channels)
    return (blurred + factor * (images - blurred)).clamp(0, 1)


def posterise(images: Tensor, bits: int) -> Tensor:
    """Return images of which each channel keeps its upper bits, 1 to 8 of 8."""
    step = 1 << (8 - bits)
    steps = (images * 255 / step + 1e-3).floor()  # 1e-3: 255 · (x / 255) may be less than x
    return steps * (step / 255)


def erase(images: Tensor, side: float, generator: np.random.Generator) -> Tensor:
    """Return images with a square, or what of it lies inside, blackened.

    `side` is a share of the images' sides; the centre is drawn for each image.
    """
    n, _, height, width = images.shape
    inside = torch.ones(n, 1, height, width, dtype=torch.bool)
    for axis, length in ((2, height), (3, width)):
        centre = torch.from_numpy(generator.integers(0, length, n))
        distance = (torch.arange(length) - centre[:, None]).abs()
        shape = [n, 1, 1, 1]
        shape[axis] = length
        inside = inside & (2 * distance < side * length).view(shape)
    return images.masked_fill(inside, 0)
