"""Images as patches: the same in training and serving, and nothing lost on the way."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING
from danlu.data.augment import Augment
from danlu.data.image import (
    ImageDocuments,
    ImageEncoder,
    flatten,
    from_patches,
    patches,
    usual_shape,
)
from danlu.data.modality import MASK_ID, NUM_SPECIAL
from danlu.data.raster import encode_png
from danlu.errors import DataError
from danlu.recipe import image as section
from tolerances import SIMPLE

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (10, 8, 12, 3), np.uint8)
RECORDS = [encode_png(picture) for picture in PICTURES]
ENCODER = ImageEncoder(8, 12, 3, patch=4).fitted(RECORDS[:6])
ROWS = np.array([7, 0, 7, 3])


def naive_patches(images, height, width):
    """Walk over the patches one by one."""
    rows = []
    for image in images:
        row = []
        for top in range(0, image.shape[0], height):
            for left in range(0, image.shape[1], width):
                patch = image[top : top + height, left : left + width]
                row.append([c for line in patch for pixel in line for c in pixel])
        rows.append(row)
    return np.array(rows)


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.sampled_from([1, 3]),
    n=st.integers(1, 3),
)
def test_patches_are_those_of_a_loop_and_go_together_again(grid, size, channels, n):
    height, width = grid[0] * size[0], grid[1] * size[1]
    images = np.random.default_rng(n).integers(0, 256, (n, height, width, channels), np.uint8)
    cut = patches(images, size)
    assert np.array_equal(cut, naive_patches(images, *size))
    assert np.array_equal(from_patches(cut, (height, width, channels), size), images)


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (16, 4), (0, 4)])
def test_patches_that_do_not_divide_the_image_are_refused(size):
    with pytest.raises(DataError, match="cannot be cut into patches"):
        patches(PICTURES, size)


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"patch": 0}, {"height": 0}])
def test_an_encoder_of_impossible_sizes_is_refused(wrong):
    with pytest.raises(DataError):
        ImageEncoder(**{"height": 8, "width": 12, "channels": 3, "patch": 4} | wrong)


def test_mean_and_deviation_are_those_of_the_training_split():
    training = PICTURES[:6].reshape(-1, 3) / 255
    assert np.allclose(ENCODER.mean, training.mean(0), atol=1e-12)
    assert np.allclose(ENCODER.std, training.std(0), atol=1e-12)


def test_statistics_do_not_depend_on_how_many_images_are_summed_at_once(monkeypatch):
    monkeypatch.setattr("danlu.data.image._AT_ONCE", 4)
    again = ImageEncoder(8, 12, 3, patch=4).fitted(RECORDS[:6])
    assert np.allclose(again.mean, ENCODER.mean, atol=1e-12)
    assert np.allclose(again.std, ENCODER.std, atol=1e-12)


def test_a_channel_that_never_changes_is_only_centred():
    flat = np.full((4, 8, 12, 3), 77, np.uint8)
    encoder = ImageEncoder(8, 12, 3).fitted([encode_png(image) for image in flat])
    assert encoder.std == (1.0, 1.0, 1.0)
    batch = encoder.encode([encode_png(flat[0])]).lay(np.array([0]))
    assert float(batch.values_UK.abs().max()) < SIMPLE


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_holds_places_and_normalised_pixels(whole):
    encoder = replace(ENCODER, whole=whole)
    documents = encoder.encode(RECORDS)
    places = 1 if whole else 6
    assert len(documents) == 10
    assert documents.sizes.tolist() == [places] * 10
    assert encoder.spec.value_dims == (8 * 12 * 3 if whole else 4 * 4 * 3)
    assert encoder.spec.value_ids == places
    assert encoder.spec.shared
    batch = documents.lay(ROWS)
    used = batch.document_BT[0] != PADDING
    assert int(used.sum()) == 4 * places
    first = encoder.spec.first_value_id
    assert batch.ids_BT[0, used].tolist() == [*range(first, first + places)] * 4
    assert encoder.spec.vocab_size == first + places
    assert batch.position_BT[0, used].tolist() == [*range(places)] * 4
    assert batch.document_BT[0, used].tolist() == np.repeat(np.arange(4), places).tolist()
    assert batch.slots_U.tolist() == [*range(4 * places)]
    assert batch.row_N.tolist() == ROWS.tolist()
    size = (8, 12) if whole else (4, 4)
    want = naive_patches((PICTURES[ROWS] / 255 - ENCODER.mean) / np.array(ENCODER.std), *size)
    assert batch.values_UK.dtype == torch.float32
    got = batch.values_UK.numpy().astype(np.float64)
    assert np.allclose(got, want.reshape(4 * places, -1), atol=SIMPLE)


def test_a_hidden_patch_keeps_its_place():
    spec = ENCODER.spec
    shown = np.arange(spec.first_value_id, spec.vocab_size)
    hidden = spec.hide(shown)
    assert hidden.tolist() == [*range(NUM_SPECIAL, NUM_SPECIAL + 6)]
    assert len(spec.hidden) == spec.vocab_size
    assert MASK_ID not in hidden
    assert np.array_equal(spec.hide(hidden), hidden)


@pytest.mark.parametrize("whole", [False, True])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_an_image_can_be_drawn_back_from_a_batch(whole, seed, channels):
    images = np.random.default_rng(seed).integers(0, 256, (3, 8, 12, channels), np.uint8)
    records = [encode_png(image) for image in images]
    encoder = ImageEncoder(8, 12, channels, whole=whole).fitted(records[:1])
    batch = encoder.encode(records).lay(np.array([2, 0]))
    assert np.array_equal(encoder.draw(batch.values_UK.numpy()), images[[2, 0]])


def test_drawing_clips_what_no_pixel_can_be():
    drawn = ENCODER.draw(np.stack([np.full(48, 99.0), np.full(48, -99.0)] * 3).astype(np.float32))
    assert set(np.unique(drawn)) == {0, 255}


def test_where_no_augmentation_is_asked_a_generator_changes_nothing():
    plain = ENCODER.encode(RECORDS)
    generated = plain.lay(ROWS, np.random.default_rng(1)).values_UK
    assert torch.equal(generated, plain.lay(ROWS).values_UK)


def test_an_augmented_batch_is_the_augmented_image():
    encoder = replace(ENCODER, augment=Augment(flip=True))
    batch = encoder.encode(RECORDS).lay(np.arange(10), np.random.default_rng(1))
    mirrored = np.random.default_rng(1).random(10) < 0.5
    want = np.where(mirrored[:, None, None, None], PICTURES[:, :, ::-1], PICTURES)
    assert np.array_equal(encoder.draw(batch.values_UK.numpy()), want)


def test_what_is_saved_comes_back_and_encodes_alike(tmp_path):
    encoder = replace(ENCODER, augment=Augment(shift=0.1, crop=2), fit="pad", max_pixels=1000)
    encoder.save(tmp_path)
    loaded = ImageEncoder.load(tmp_path)
    assert loaded == encoder
    assert loaded.spec == encoder.spec
    encoder.encode(RECORDS).save(tmp_path, "train")
    documents = loaded.load_documents(tmp_path, "train")
    assert isinstance(documents.images, np.memmap)
    assert np.array_equal(documents.images, PICTURES)
    served = loaded.encode(RECORDS[:1]).lay(np.array([0]))
    assert torch.equal(served.values_UK, documents.lay(np.array([0])).values_UK)


def test_images_that_cannot_be_used_are_named_and_counted():
    records = [*RECORDS[:2], b"junk", RECORDS[2][:60], b"", RECORDS[3]]
    with pytest.raises(DataError) as caught:
        ENCODER.encode(records)
    assert "3 of 6 images" in caught.value.what
    assert "not an image (2)" in caught.value.what
    assert "truncated image (1)" in caught.value.what
    assert caught.value.where == "image 3 and others"
    with pytest.raises(DataError, match="1 of 1 images cannot be used: more than 50 pixels"):
        replace(ENCODER, max_pixels=50).encode(RECORDS[:1])


def test_there_is_nothing_to_fit_on_without_an_image():
    with pytest.raises(DataError, match="no image"):
        ImageEncoder(8, 12, 3).fitted([])


def test_a_baselines_features_are_the_pixels_in_order():
    features = flatten(PICTURES)
    assert features.shape == (10, 8 * 12 * 3)
    assert features.dtype == np.float32
    assert np.array_equal(features[3], (PICTURES[3].ravel() / np.float32(255)).astype(np.float32))
    assert float(features.min()) >= 0
    assert float(features.max()) <= 1


def test_the_usual_shape_is_that_of_most_images():
    def blank(height, width, channels):
        return encode_png(np.zeros((height, width, channels), np.uint8))

    grey = [blank(8, 12, 1), blank(8, 12, 1), blank(20, 20, 1)]
    assert usual_shape(grey) == (8, 12, 1)
    assert usual_shape([*grey, blank(20, 20, 3)]) == (20, 20, 3)  # the larger of two as frequent
    assert usual_shape([*grey, blank(8, 12, 3), blank(20, 20, 1)]) == (8, 12, 3)
    with pytest.raises(DataError, match="no image"):
        usual_shape([])


def test_an_image_of_another_size_is_brought_to_size():
    large = np.kron(PICTURES[0], np.ones((2, 2, 1), np.uint8))
    documents = ENCODER.encode([encode_png(large)])
    assert isinstance(documents, ImageDocuments)
    difference = np.abs(documents.images[0].astype(int) - PICTURES[0])
    assert difference.mean() < 50
    assert documents.images.shape == (1, 8, 12, 3)


def test_the_recipes_keys_are_those_of_the_augmentation():
    assert section.Augment().model_dump() == {
        name: getattr(Augment(), name) for name in Augment.__dataclass_fields__
    }


def test_the_ids_of_the_places_follow_each_other():
    ids = ENCODER.encode(RECORDS[:1]).lay(np.array([0])).ids_BT[0, :6].tolist()
    assert all(b - a == 1 for a, b in pairwise(ids))
