"""Image files of every kind are decoded right; hostile ones are refused, and say why."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from danlu.data.raster import FORMATS, UnusableImage, decode, encode_png, fault, shape_of
from danlu.errors import DataError

HEIGHT, WIDTH = 20, 30
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
_y, _x = np.mgrid[0:HEIGHT, 0:WIDTH]
SMOOTH = np.stack([_x * 8, _y * 12, 255 - _x * 4 - _y * 6], -1).astype(np.uint8)
LOSSY = 12  # grey levels by which a good JPEG of SMOOTH may differ


def saved(picture, kind, **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows, *chunks):
    """Write a PNG by hand, for what Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def decoded(blob, channels=3, **options):
    return decode(blob, (HEIGHT, WIDTH), channels, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_lossless_files_keep_their_pixels(kind, options):
    assert np.array_equal(decoded(saved(Image.fromarray(NOISE), kind, **options)), NOISE)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_come_close(kind):
    got = decoded(saved(Image.fromarray(SMOOTH), kind, quality=95))
    assert np.abs(got.astype(int) - SMOOTH).max() <= LOSSY


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "TGA", "SGI"])
def test_other_formats_are_not_opened(kind):
    blob = saved(Image.fromarray(SMOOTH), kind)
    assert fault(blob) == "not an image"
    assert kind not in FORMATS


def test_grey_is_the_luma_of_bt_601():
    want = NOISE @ np.array([0.299, 0.587, 0.114])
    got = decoded(saved(Image.fromarray(NOISE), "PNG"), 1)
    assert got.shape == (HEIGHT, WIDTH, 1)
    assert np.abs(got[..., 0] - want).max() < 1
    grey = NOISE[..., :1]
    assert np.array_equal(decoded(encode_png(grey)), np.repeat(grey, 3, -1))


TURNS = {  # what has been done to a picture of each orientation; see the EXIF standard, tag 0x112
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_orientation_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.ascontiguousarray(TURNS[orientation](NOISE))
    blob = saved(Image.fromarray(stored), kind, exif=exif, **options)
    assert np.array_equal(decoded(blob), NOISE)
    assert shape_of(blob) == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", TURNS)
def test_a_large_turned_photograph_is_decoded_at_a_part_of_its_size(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = np.asarray(Image.fromarray(SMOOTH).resize((WIDTH * 16, HEIGHT * 16)))
    stored = np.ascontiguousarray(TURNS[orientation](large))
    got = decoded(saved(Image.fromarray(stored), "JPEG", quality=95, exif=exif))
    want = np.asarray(Image.fromarray(large).resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    assert np.abs(got.astype(int) - want).max() <= LOSSY


def test_cmyk_becomes_rgb():
    cyan, magenta, yellow, black = np.full((4, HEIGHT, WIDTH), 0)
    cyan[:, :15], black[:10] = 255, 128
    picture = Image.fromarray(np.stack([cyan, magenta, yellow, black], -1).astype(np.uint8), "CMYK")
    got = decoded(saved(picture, "JPEG", quality=100, subsampling=0)).astype(int)
    want = np.stack([(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)], -1)
    assert np.abs(got - want).max() <= LOSSY
    assert shape_of(saved(picture, "JPEG")) == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_stands_before_white(kind):
    alpha = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) % 256).astype(np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = decoded(saved(Image.fromarray(np.concatenate([NOISE, alpha], -1)), kind, **options))
    want = (NOISE * (alpha / 255.0)) + 255 * (1 - alpha / 255.0)
    assert np.abs(got - want).max() <= 1


def test_grey_with_alpha_stands_before_white():
    both = np.stack([np.full((HEIGHT, WIDTH), 40), (_x < 10) * 255], -1).astype(np.uint8)
    got = decoded(saved(Image.fromarray(both, "LA"), "PNG"), 1)
    assert np.array_equal(got[..., 0], np.where(_x < 10, 40, 255))


@pytest.mark.parametrize("transparent", [2, b"\xff\xff\x00\xff"])
def test_a_palette_keeps_its_colours_and_its_transparent_ones_become_white(transparent):
    index = (_x % 4).astype(np.uint8)
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette(colours.tobytes())
    assert np.array_equal(decoded(saved(picture, "PNG")), colours[index])
    got = decoded(saved(picture, "PNG", transparency=transparent))
    shown = np.where(np.arange(4)[:, None] == 2, 255, colours)
    assert np.array_equal(got, shown[index])


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 109).astype(np.uint16)
    want = np.round(grey / 257.0).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        blob = saved(Image.fromarray(grey), kind)
        assert np.array_equal(decoded(blob, 1)[..., 0], want)
        assert shape_of(blob) == (HEIGHT, WIDTH, 1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    blob = png(WIDTH, HEIGHT, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", int(grey[3, 3]))))
    got = decoded(blob, 1)[..., 0]
    assert got[3, 3] == 255
    assert np.array_equal(
        np.delete(got.ravel(), 3 * WIDTH + 3), np.delete(want.ravel(), 3 * WIDTH + 3)
    )


def test_sixteen_bit_colour_keeps_its_upper_byte():
    rows = b"".join(b"\0" + (row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in NOISE)
    assert np.array_equal(decoded(png(WIDTH, HEIGHT, 16, 2, rows)), NOISE)


def test_one_bit_is_black_and_white():
    picture = Image.fromarray(_x % 2 == 0)
    assert np.array_equal(decoded(saved(picture, "PNG"), 1)[..., 0], (_x % 2 == 0) * 255)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype):
    assert "range is not known" in fault(saved(Image.fromarray(_x.astype(dtype)), "TIFF"))


def test_colours_that_pillow_cannot_convert_are_refused():
    assert fault(saved(Image.fromarray(NOISE, "LAB"), "TIFF")) == "colours in CIELAB"


def test_a_phones_photograph_with_a_second_picture_is_a_jpeg():
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for level in (9, 99)]
    blob = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decoded(blob).astype(int) - 9).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for level in (9, 99, 199)
    ]
    options = {"lossless": True} if kind == "WEBP" else {}
    blob = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decoded(blob), np.full((HEIGHT, WIDTH, 3), 9))


def test_fits():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :10], wide[:, 10:30], wide[:, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    blob = encode_png(wide)
    assert np.array_equal(decode(blob, (10, 20), fit="crop"), wide[:, 10:30])
    padded = decode(blob, (40, 40), fit="pad")
    assert np.array_equal(padded[15:25], wide)
    assert not padded[:15].any()
    assert not padded[25:].any()
    stretched = decode(blob, (10, 4), fit="stretch")
    ends = stretched[:, [0, 3]].astype(int) - np.array([[255, 0, 0], [0, 0, 255]])
    assert np.abs(ends).max() < 60  # a pixel's average reaches a little beyond it


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1), (1, 1), (3, 2)])
def test_a_picture_of_any_proportions_fits(fit, height, width):
    blob = encode_png(np.full((height, width, 3), 200, np.uint8))
    got = decode(blob, (8, 6), fit=fit)
    assert got.shape == (8, 6, 3)
    assert got.max() == 200


@pytest.mark.parametrize(("width", "height"), [(8000, 8000), (10_000, 10_000), (65_535, 65_535)])
def test_a_bomb_is_refused_before_it_is_decoded(width, height):
    bomb = png(width, height, 8, 2, b"\0" * 1000)  # far too few pixels, which is never found out
    assert fault(bomb) == "more than 50000000 pixels"
    assert fault(encode_png(NOISE), max_pixels=599) == "more than 599 pixels"
    assert fault(encode_png(NOISE), max_pixels=600) is None


def test_a_frame_larger_than_its_gif_says_is_a_bomb_too():
    blob = bytearray(saved(Image.fromarray(NOISE), "GIF"))
    place = blob.index(b"\x2c\0\0\0\0")
    blob[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)
    assert fault(bytes(blob)) == "more than 50000000 pixels"


@pytest.mark.parametrize("blob", [b"", b"\0", b"hello", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_not_an_image_is_said_to_be_none(blob):
    with pytest.raises(DataError) as caught:
        decoded(blob)
    assert isinstance(caught.value, UnusableImage)
    assert caught.value.reason == "not an image"


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(width, height):
    bitmap = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    bitmap += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    assert fault(bitmap)
    assert fault(png(width, height, 8, 2, b""))


WHOLE = {
    "png": saved(Image.fromarray(NOISE), "PNG"),
    "jpeg": saved(Image.fromarray(NOISE), "JPEG"),
    "progressive": saved(Image.fromarray(NOISE), "JPEG", progressive=True),
    "gif": saved(Image.fromarray(NOISE), "GIF"),
    "bmp": saved(Image.fromarray(NOISE), "BMP"),
    "webp": saved(Image.fromarray(NOISE), "WEBP"),
    "tiff": saved(Image.fromarray(NOISE), "TIFF"),
    "deflated": saved(Image.fromarray(NOISE), "TIFF", compression="tiff_deflate"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused_unless_every_pixel_is_there(name):
    blob, want = WHOLE[name], decoded(WHOLE[name])
    reasons = [fault(blob[:length]) for length in range(len(blob))]
    assert set(reasons[4:]) <= {"truncated image", "damaged or truncated image", None}
    used = [length for length, reason in enumerate(reasons) if reason is None]
    assert all(np.array_equal(decoded(blob[:length]), want) for length in used)
    assert len(used) <= 20  # what stands after the last pixel


@settings(deadline=None, max_examples=200)
@given(start=st.sampled_from(sorted(WHOLE)), keep=st.integers(0, 200), rest=st.binary(max_size=300))
@example(start="png", keep=0, rest=b"BM")
def test_bytes_at_random_are_an_image_or_refused_and_never_another_error(start, keep, rest):
    try:
        got = decoded(WHOLE[start][:keep] + rest)
    except UnusableImage:
        return
    assert got.shape == (HEIGHT, WIDTH, 3)


@settings(deadline=None, max_examples=200)
@given(
    start=st.sampled_from(sorted(WHOLE)),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
)
def test_a_changed_byte_never_raises_another_error(start, place, byte):
    blob = bytearray(WHOLE[start])
    blob[int(place * len(blob))] = byte
    try:
        got = decoded(bytes(blob))
    except UnusableImage:
        return
    assert got.shape == (HEIGHT, WIDTH, 3)


def test_the_orientations_are_pillows_own():
    exif = Image.Exif()
    for orientation, turn in TURNS.items():
        exif[0x0112] = orientation
        blob = saved(Image.fromarray(np.ascontiguousarray(turn(NOISE))), "PNG", exif=exif)
        turned = ImageOps.exif_transpose(Image.open(BytesIO(blob)))
        assert np.array_equal(np.asarray(turned), NOISE)
