"""Files of many images in one array: MNIST's idx, and NumPy's npz.

Each image comes out as a PNG file, as if it had been one: from there on nothing differs.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from danlu.data.raster import encode_png
from danlu.errors import DataError

Arrays = dict[str, NDArray[Any]]

_IMAGES, _LABELS = 0x803, 0x801  # magic numbers: unsigned bytes, in three and in one dimension
_LEVEL = 1  # of compression: the files are read again soon
_FREE, _RATIO = 64 << 20, 500  # bytes that any npz may unpack to; times its size that others may
_PARTNERS = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"), ("image", "label"),
             ("data", "labels"), ("data", "target"))  # fmt: skip
"""What the names of images and of their labels differ by, as Keras, MedMNIST and others have it."""


def idx(path: Path, labels: Path | None) -> Iterator[dict[str, Any]]:
    """Read MNIST's format (LeCun, Cortes and Burges): a header of big-endian integers, then bytes.

    Parameters
    ----------
    path : Path
        Of the images.
    labels : Path or None

    Yields
    ------
    dict
        ``{"image": PNG, "label": "7"}``; without `labels` it has no label.

    Raises
    ------
    DataError
        If a file is not what its header says, or they do not fit each other.
    """
    images, (count, height, width) = _map_idx(path, _IMAGES, 3)
    told = None
    if labels:
        told, (num_labels,) = _map_idx(labels, _LABELS, 1)
        if num_labels != count:
            raise DataError(
                f"there are {count:,} images and {num_labels:,} labels", where=str(labels)
            )
    for number, pixels in enumerate(images.reshape(count, height, width, 1)):
        row: dict[str, Any] = {"image": encode_png(pixels, _LEVEL)}
        if told is not None:
            row["label"] = str(told[number])
        yield row


def _map_idx(path: Path, magic: int, num_axes: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the bytes and the shape of an idx file whose size is what its header says."""
    header = 4 + 4 * num_axes
    with path.open("rb") as file:
        head = file.read(header)
    found = int.from_bytes(head[:4], "big")
    if len(head) < header or found != magic:
        raise DataError(
            f"not an idx file of {'images' if magic == _IMAGES else 'labels'}: it begins with "
            f"{found:#010x} instead of {magic:#010x}"
            if found != magic
            else "the idx file ends within its header",
            where=str(path),
        )
    shape = [int(size) for size in np.frombuffer(head, ">u4", num_axes, offset=4)]
    expected, size = header + math.prod(shape), path.stat().st_size
    if size != expected:
        raise DataError(
            f"the idx file has {size:,} bytes where its header promises {expected:,}",
            where=str(path),
            mend="get it anew",
        )
    if 0 in shape:
        return np.empty(0, np.uint8), [0] * num_axes
    return np.memmap(path, np.uint8, "r", offset=header), shape


def npz(path: Path) -> Iterator[dict[str, Any]]:
    """Read the images of an npz file, and the labels that go with them.

    Arrays of images hold bytes and have the axes (n, H, W), (n, H, W, C) or (n, C, H, W), where
    C is 1 or 3. Arrays of n cells are their columns: all of them, if there is one array of
    images; and in any case the labels, known by their name (``x_train`` and ``y_train``,
    ``images`` and ``labels`` …) or by being the only such array.

    Yields
    ------
    dict
        ``image`` (PNG), ``array`` (the name of the array), ``label`` if there is one.

    Raises
    ------
    DataError
        If there is no such array, or the file is damaged or hostile.
    """
    arrays = _unpacked(path)
    images = {
        name: found for name, cells in arrays.items() if (found := _pixels(cells)) is not None
    }
    if not images:
        held = ", ".join(f"{name} {cells.dtype}{cells.shape}" for name, cells in arrays.items())
        raise DataError(
            f"no array holds images; there are: {held or 'none'}",
            where=str(path),
            mend="save pixels as uint8, from 0 to 255, with the axes (n, height, width, 1 or 3)",
        )
    for name, pixels in images.items():
        columns = _columns(name, len(pixels), arrays, alone=len(images) == 1)
        for number, image in enumerate(pixels):
            cells = {column: str(cells[number]) for column, cells in columns.items()}
            yield {"image": encode_png(np.ascontiguousarray(image), _LEVEL), "array": name, **cells}


def _pixels(cells: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return an array of images with the axes (n, H, W, C); None if it is none."""
    if cells.dtype != np.uint8 or cells.ndim not in (3, 4) or 0 in cells.shape:
        return None
    if cells.ndim == 3:
        return cells[..., None]
    if cells.shape[3] in (1, 3):
        return cells
    return np.moveaxis(cells, 1, -1) if cells.shape[1] in (1, 3) else None


def _columns(name: str, count: int, arrays: Arrays, *, alone: bool) -> Arrays:
    """Return the arrays that say something of each image of one array."""
    fitting = {
        other: cells.ravel()
        for other, cells in arrays.items()
        if cells.size == len(cells) == count and cells.dtype.kind in "biuU" and other != name
    }
    partners = {name.replace(*pair) for pair in _PARTNERS} - {name}
    of = [other for other in fitting if other in partners] or (
        [*fitting] if len(fitting) == 1 and alone else []
    )
    return (fitting if alone else {}) | ({"label": fitting[of[0]]} if of else {})


def _unpacked(path: Path) -> Arrays:
    """Return the arrays of an npz file, none of which is larger than it may be."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(m.file_size for m in archive.infolist()) > max(
                _FREE, _RATIO * path.stat().st_size
            ):
                raise DataError("the npz file unpacks to too much", where=str(path))
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _member(archive, name) for name in names}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise DataError(f"not an npz file, or a damaged one: {error}", where=str(path)) from None


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return one array; its header is held against its size before memory is taken for it."""
    with archive.open(name) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > archive.getinfo(name).file_size:
            raise ValueError(f"{name!r} promises more than it holds")
    with archive.open(name) as file:
        found: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return found
