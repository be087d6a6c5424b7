"""Images as a row of patches: each patch is a position, and its pixels are the position's value.

As in ViT (Dosovitskiy et al., 2021) the place of a patch is learnt: it is the patch's id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.batch import Batch
from danlu.data.augment import Augment
from danlu.data.modality import NUM_SPECIAL, Spec, lay_end_to_end
from danlu.data.raster import MAX_PIXELS, Fit, UnusableImage, decode, shape_of
from danlu.errors import DataError

FILE = "image.json"
_AT_ONCE = 1024  # images whose statistics are summed at once


def patches(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Cut images into patches, from left to right and then downwards.

    Parameters
    ----------
    images : NDArray, shape (N, H, W, C)
    size : tuple of int
        Height and width of a patch, which divide those of the images.

    Returns
    -------
    NDArray, shape (N, positions, height · width · C)
        A patch's rows stand one after the other, and a pixel's channels side by side.

    Raises
    ------
    DataError
        The sizes do not divide.
    """
    n, height, width, channels = images.shape
    down, across = _grid((height, width), size)
    split = images.reshape(n, down, size[0], across, size[1], channels).swapaxes(2, 3)
    return split.reshape(n, down * across, size[0] * size[1] * channels)


def from_patches(
    values: NDArray[Any], shape: tuple[int, int, int], size: tuple[int, int]
) -> NDArray[Any]:
    """Put images together again from their :func:`patches`.

    Parameters
    ----------
    values : NDArray, shape (N, positions, height · width · C)
    shape : tuple of int
        H, W and C of an image.
    size : tuple of int
        Height and width of a patch.

    Returns
    -------
    NDArray, shape (N, H, W, C)
    """
    down, across = _grid(shape[:2], size)
    split = values.reshape(-1, down, across, size[0], size[1], shape[2]).swapaxes(2, 3)
    return split.reshape(-1, *shape)


def _grid(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches stand below and beside each other."""
    for name, whole, part in zip(("height", "width"), shape, size, strict=True):
        if part < 1 or whole % part:
            raise DataError(
                f"an image's {name} of {whole} pixels cannot be cut into patches of {part}",
                where="image.patch",
                mend=f"choose a patch that divides the {name}, or another {name}",
            )
    return shape[0] // size[0], shape[1] // size[1]


def flatten(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each image as one row of features in [0, 1], for a baseline.

    Parameters
    ----------
    images : NDArray of uint8, shape (n, H, W, C)

    Returns
    -------
    NDArray of float32, shape (n, H · W · C)
    """
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def usual_shape(records: Iterable[bytes]) -> tuple[int, int, Literal[1, 3]]:
    """Return the height and width that most images have, and the channels that all need.

    Among sizes that are as frequent the larger is taken. One coloured image makes all RGB.

    Raises
    ------
    DataError
        An image cannot be read, or there is none.
    """
    shapes = Counter(map(shape_of, records))
    if not shapes:
        raise DataError("there is no image to take a size from")
    sizes: Counter[tuple[int, int]] = Counter()
    for (height, width, _), n in shapes.items():
        sizes[height, width] += n
    height, width = max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size))
    return height, width, 3 if any(shape[2] == 3 for shape in shapes) else 1


@dataclass(frozen=True)
class ImageEncoder:
    """Turns image files into patches of normalised pixels, in training and serving alike.

    Attributes
    ----------
    height, width : int
        What every image is brought to (pixels).
    channels : {1, 3}
        Grey or RGB.
    patch : int
        Side of a patch (pixels), which divides height and width.
    whole : bool
        The whole image is one position, as a multilayer perceptron needs; `patch` is not used.
    fit : {"crop", "pad", "stretch"}
        How an image is brought to size; see :func:`danlu.data.raster.decode`.
    max_pixels : int
        Larger images are refused before they are decoded.
    augment : Augment
        How training images are changed at random.
    mean, std : tuple of float
        Of each channel over the training split's pixels, on a scale from 0 to 1. A channel
        that never changes has a `std` of 1.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    patch: int = 4
    whole: bool = False
    fit: Fit = "crop"
    max_pixels: int = MAX_PIXELS
    augment: Augment = field(default_factory=Augment)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise DataError("an image has at least one pixel", where="image.height, image.width")
        _grid((self.height, self.width), self.patch_size)

    def fitted(self, records: Sequence[bytes]) -> Self:
        """Return an encoder with the mean and deviation of the training split's pixels.

        Raises
        ------
        DataError
            An image cannot be used, or there is none.
        """
        count, total, square = 0, np.zeros(self.channels, object), np.zeros(self.channels, object)
        for start in range(0, len(records), _AT_ONCE):
            images = self._decoded(records[start : start + _AT_ONCE], start)
            pixels = images.reshape(-1, self.channels).astype(np.int64)
            count += len(pixels)
            total += pixels.sum(0).astype(object)  # whole numbers of any size: nothing is rounded
            square += (pixels**2).sum(0).astype(object)
        if not count:
            raise DataError("there is no image to fit on")
        mean = (total / count / 255).astype(np.float64)
        std = np.sqrt((count * square - total**2).astype(np.float64)) / count / 255
        std[std == 0] = 1.0
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.height, self.width, self.channels

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return (self.height, self.width) if self.whole else (self.patch, self.patch)

    @property
    def positions(self) -> int:
        """Patches of an image."""
        down, across = _grid((self.height, self.width), self.patch_size)
        return down * across

    @cached_property
    def spec(self) -> Spec:
        """What a position holds: the id tells the place, with its pixels or hidden."""
        places = self.positions
        first = NUM_SPECIAL + places
        hidden = (*range(first), *range(NUM_SPECIAL, first))
        dims = self.patch_size[0] * self.patch_size[1] * self.channels
        return Spec(first + places, dims, places, shared=True, hidden=hidden)

    def encode(self, records: Sequence[bytes]) -> ImageDocuments:
        """Decode image files.

        Raises
        ------
        DataError
            An image cannot be used; says which, and counts the reasons.
        """
        return ImageDocuments(self._decoded(records, 0), self)

    def _decoded(self, records: Sequence[bytes], start: int) -> NDArray[np.uint8]:
        """Return the pixels of image files, of which the first is number `start`."""
        images = np.empty((len(records), *self.shape), np.uint8)
        faults: dict[int, str] = {}
        for row, blob in enumerate(records):
            try:
                images[row] = decode(blob, self.shape[:2], self.channels, self.fit, self.max_pixels)
            except UnusableImage as error:
                faults[start + row] = error.reason
        if faults:
            told = ", ".join(f"{reason} ({n})" for reason, n in Counter(faults.values()).items())
            raise DataError(
                f"{len(faults)} of {len(records)} images cannot be used: {told}",
                where=f"image {next(iter(faults)) + 1}" + (" and others" * (len(faults) > 1)),
                mend="leave them out, or mend the files",
            )
        return images

    def values(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values of images' patches.

        Parameters
        ----------
        pixels : NDArray of float32, shape (n, H, W, C)
            In [0, 1].

        Returns
        -------
        NDArray of float32, shape (n · positions, K)
            Less the mean, over the standard deviation.
        """
        mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
        values = patches((pixels - mean) / std, self.patch_size)
        return values.reshape(-1, values.shape[-1])

    def draw(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the images that values stand for, rounded and clipped to the range of pixels.

        Parameters
        ----------
        values : NDArray of float32, shape (n · positions, K)

        Returns
        -------
        NDArray of uint8, shape (n, H, W, C)
        """
        mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
        levels = (from_patches(values, self.shape, self.patch_size) * std + mean) * 255
        return np.asarray(np.rint(levels).clip(0, 255), np.uint8)

    def load_documents(self, folder: Path, name: str) -> ImageDocuments:
        """Map the images that :meth:`ImageDocuments.save` wrote."""
        return ImageDocuments(np.load(folder / f"{name}.images.npy", mmap_mode="r"), self)

    def save(self, folder: Path) -> None:
        """Write ``image.json``."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        told = json.loads((folder / FILE).read_text())
        told |= {key: tuple(told[key]) for key in ("mean", "std")}
        return cls(**told | {"augment": Augment(**told["augment"])})


@dataclass(frozen=True)
class ImageDocuments:
    """Images of one split: each is a document of as many positions as it has patches.

    Attributes
    ----------
    images : NDArray of uint8, shape (n, H, W, C)
        Memory-mapped, where they were loaded.
    encoder : ImageEncoder
    """

    images: NDArray[np.uint8]
    encoder: ImageEncoder

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Positions of each image."""
        return np.full(len(self), self.encoder.positions, np.int64)

    def lay(self, rows: NDArray[np.int64], generator: np.random.Generator | None = None) -> Batch:
        """Lay images end to end in one row; a generator asks for augmentation."""
        pixels = flatten(self.images[rows]).reshape(len(rows), *self.encoder.shape)
        if generator is not None:
            planes = torch.from_numpy(pixels).movedim(-1, 1).contiguous()
            pixels = self.encoder.augment(planes, generator).movedim(1, -1).numpy()
        places, first = self.encoder.positions, self.encoder.spec.first_value_id
        return lay_end_to_end(
            np.tile(np.arange(first, first + places), len(rows)),
            np.full(len(rows), places),
            rows,
            self.encoder.values(pixels),
            np.arange(len(rows) * places),
        )

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.images.npy``."""
        np.save(folder / f"{name}.images.npy", self.images)
