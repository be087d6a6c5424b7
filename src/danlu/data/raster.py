"""From the bytes of an image file to its pixels, or the reason why it cannot be used.

Pixels are uint8, laid out (H, W, C) from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from danlu.errors import DataError

Fit = Literal["crop", "pad", "stretch"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""What Pillow may open: rasters only, and nothing that it hands to another program."""
MAX_PIXELS = 50_000_000
"""A 48-megapixel photograph passes. Pillow itself warns at 89 and refuses at 179 million."""
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
"""How a file of each format begins."""

_SAMPLES = Image.Resampling.BILINEAR  # an average of what a pixel covers where it shrinks
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class UnusableImage(DataError):
    """An image file that cannot be used.

    Attributes
    ----------
    reason : str
        Short, and without anything of the file in it, such that reasons can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, mend="mend the file, or leave it out")
        self.reason = reason


def decode(
    blob: bytes,
    size: tuple[int, int],
    channels: Literal[1, 3] = 3,
    fit: Fit = "crop",
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode an image file and bring it to one size.

    Parameters
    ----------
    blob : bytes
        A PNG, JPEG, GIF, BMP, WEBP or TIFF file; of several frames or pages the first is taken.
    size : tuple of int
        Height and width wanted (pixels). A picture of this size keeps its pixels as they are.
    channels : {1, 3}
        Grey (ITU-R BT.601 luma) or RGB. A colour profile in the file is not applied.
    fit : {"crop", "pad", "stretch"}
        Fill the size and cut off what stands over, on both sides alike; show all and fill up
        with black; or give up the picture's own proportions.
    max_pixels : int
        A picture that declares more is refused before any pixel is decoded.

    Returns
    -------
    NDArray of uint8, shape (height, width, channels)
        Turned as its EXIF orientation says; what is transparent stands before white.

    Raises
    ------
    UnusableImage
        Not an image, more than `max_pixels`, no pixels, truncated, damaged, with pixels of no
        known range (32 bits) or colours in CIELAB. A file that lost its end but no pixel is used.

    Examples
    --------
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> bool((decode(encode_png(image), (2, 2)) == image).all())
    True
    """
    with _refusing(blob, max_pixels), Image.open(BytesIO(blob), formats=FORMATS) as file:
        _check_size(file, max_pixels)
        # A JPEG can be decoded at a half, quarter or eighth of its size, which saves most of a
        # photograph's time; twice the size wanted leaves enough to average over. Either side
        # may be the height yet, since the picture has not been turned.
        file.draft(None, (2 * max(size), 2 * max(size)))
        file.load()
        picture = _fitted(_plain(ImageOps.exif_transpose(file), channels), size, fit)
    return np.asarray(picture, np.uint8).reshape(*size, channels)


def fault(blob: bytes, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return why an image file cannot be used, or None if it can."""
    try:
        decode(blob, (1, 1), 1, "stretch", max_pixels)
    except UnusableImage as error:
        return error.reason
    return None


def shape_of(blob: bytes) -> tuple[int, int, Literal[1, 3]]:
    """Return an image's own height, width and channels; only a TIFF is decoded for it.

    Raises
    ------
    UnusableImage
    """
    with _refusing(blob, MAX_PIXELS), Image.open(BytesIO(blob), formats=FORMATS) as file:
        _check_size(file, MAX_PIXELS)
        if file.format == "TIFF":
            file.load()  # which turns the picture and forgets its orientation
        width, height = file.size
        if file.getexif().get(0x0112, 1) >= 5:  # orientations that lie on their side
            width, height = height, width
        grey = file.mode in ("1", "L", "LA", "La", *_SIXTEEN_BITS)
    return height, width, 1 if grey else 3


def encode_png(image: NDArray[np.uint8], level: int = 6) -> bytes:
    """Return the PNG file of an image of shape (H, W, 1) or (H, W, 3).

    `level` is zlib's: 1 is the quickest, 9 gives the smallest file.
    """
    file = BytesIO()
    plain = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(plain).save(file, "PNG", compress_level=level)
    return file.getvalue()


@contextmanager
def _refusing(blob: bytes, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder says of a file into a reason.

    Decoders that are handed hostile bytes raise errors of every kind, from ``OSError`` to
    ``struct.error`` and ``IndexError``: all mean that the file is not what it claims.
    """
    try:
        yield
    except (UnusableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(f"more than {max_pixels} pixels") from error
    except Exception as error:
        if "truncated" in str(error).lower():
            reason = "truncated image"
        elif isinstance(error, UnidentifiedImageError) and not blob.startswith(SIGNATURES):
            reason = "not an image"
        else:
            reason = "damaged or truncated image"
        raise UnusableImage(reason) from error


def _check_size(file: Image.Image, max_pixels: int) -> None:
    if file.width * file.height > max_pixels:
        raise UnusableImage(f"more than {max_pixels} pixels")


def _plain(picture: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Return the picture as 8-bit grey or RGB, before white."""
    if picture.mode in ("I", "F"):
        raise UnusableImage("pixels of 32 bits, whose range is not known")
    if picture.mode == "LAB":  # Pillow converts it through colour profiles only
        raise UnusableImage("colours in CIELAB")
    if picture.mode in _SIXTEEN_BITS:  # Pillow would clip at 255
        picture = _eight_bits(picture)
    elif picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("L" if channels == 1 else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey, rounded to nearest; a transparent grey as white."""
    grey = np.asarray(picture).astype(np.uint32)
    eight = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    if "transparency" in picture.info:
        eight[grey == picture.info["transparency"]] = 255
    return Image.fromarray(eight)


def _fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Bring a picture to a size (height, width)."""
    height, width = size
    if fit == "stretch":
        return picture.resize((width, height), _SAMPLES)
    if fit == "crop":
        return ImageOps.fit(picture, (width, height), _SAMPLES)
    ratio = min(height / picture.height, width / picture.width)
    # A line of pixels far longer than wide would vanish.
    shown = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    board = Image.new(picture.mode, (width, height))
    board.paste(
        picture.resize(shown, _SAMPLES), ((width - shown[0]) // 2, (height - shown[1]) // 2)
    )
    return board
