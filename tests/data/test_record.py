"""Records of several kinds: how they are laid out, and what they say of what is missing."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING, ValueKind
from danlu.data.augment import Augment
from danlu.data.hide import for_masked, hide
from danlu.data.load import DocumentLoader
from danlu.data.modality import BEGIN_ID, MASK_ID, NUM_SPECIAL, PAD_ID
from danlu.data.record_encoder import RecordEncoder, load
from danlu.data.table import TableEncoder
from records import encoder, png, records

ENCODER, TRAIN = encoder(), records()
PHOTO = png(np.random.default_rng(3))
MIXES = [
    {"images": ()},
    {"texts": ()},
    {"cells": ()},
    {"cells": (), "images": ()},
    {"cells": ("city",), "texts": ("story",)},
    {},
]


def reference(own, rows):
    """Lay records out position by position, straight from the description of the layout."""
    cells, tokens, image = own.cells, own.tokenizer, own.image
    texts, images = own.texts, own.images
    num_fixed = NUM_SPECIAL + 2 * len(texts) + len(images)
    of_cells = cells.spec if cells.columns else None
    num_cells = of_cells.first_value_id - NUM_SPECIAL if of_cells else 0
    num_tokens = tokens.tokenizer.get_vocab_size() - NUM_SPECIAL if tokens else 0
    num_places = image.positions if image else 0
    first_value = num_fixed + num_cells + num_tokens + num_places * len(images)
    first_patch = first_value + (of_cells.value_ids if of_cells else 0)
    widest = max([of_cells.value_dims if of_cells else 0, 16 if image else 0])
    for record in rows:
        positions = []  # id, position, value
        if of_cells:
            grid = cells.encode([record])
            for column, id_ in enumerate(grid.ids[0].tolist()):
                if id_ >= of_cells.first_value_id:
                    value = grid.values[0, column]
                    positions.append((id_ - of_cells.first_value_id + first_value, 0, value))
                else:
                    positions.append((id_ - NUM_SPECIAL + num_fixed, 0, None))
        at = 0
        for number, name in enumerate(texts):
            begin = NUM_SPECIAL + 2 * number
            if not record.get(name):
                positions.append((begin + 1, at, None))
                at += 1
                continue
            ids = tokens.tokenizer.encode(record[name]).ids[: tokens.max_length - 1]
            moved = [begin, *(i - NUM_SPECIAL + num_fixed + num_cells for i in ids)]
            positions += [(id_, at + n, None) for n, id_ in enumerate(moved)]
            at += len(moved)
        for number, name in enumerate(images):
            if not record.get(name):
                positions.append((NUM_SPECIAL + 2 * len(texts) + number, at, None))
                at += 1
                continue
            pixels = image.encode([record[name]]).images[0, :, :, 0] / np.float32(255)
            pixels = (pixels - np.float32(image.mean[0])) / np.float32(image.std[0])
            for place in range(num_places):
                down, across = divmod(place, 2)
                patch = pixels[4 * down : 4 * down + 4, 4 * across : 4 * across + 4].ravel()
                positions.append((first_patch + number * num_places + place, at + place, patch))
            at += num_places
        yield [
            (i, p, None if v is None else np.pad(v, (0, widest - len(v)))) for i, p, v in positions
        ]


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_layout_is_that_of_a_reference_written_by_hand(mix):
    own = encoder(**mix)
    rows = np.array([3, 0, 1, 2, 21, 6, 14])
    batch = own.encode(TRAIN).lay(rows)
    wanted = list(reference(own, [TRAIN[row] for row in rows]))
    ids = list(itertools.chain.from_iterable(wanted))
    total = len(ids)
    assert batch.ids_BT.shape[0] == 1
    assert batch.ids_BT.shape[1] % 64 == 0
    assert batch.ids_BT[0, :total].tolist() == [id_ for id_, _, _ in ids]
    assert (batch.ids_BT[0, total:] == PAD_ID).all()
    assert (batch.document_BT[0, total:] == PADDING).all()
    assert batch.position_BT[0, :total].tolist() == [position for _, position, _ in ids]
    owners = [number for number, record in enumerate(wanted) for _ in record]
    assert batch.document_BT[0, :total].tolist() == owners
    assert batch.row_N.tolist() == rows.tolist()
    assert batch.num_documents == len(rows)
    slots = [slot for slot, (_, _, value) in enumerate(ids) if value is not None]
    if not slots:
        assert batch.values_UK is None
        return
    assert batch.slots_U.tolist() == slots
    np.testing.assert_allclose(batch.values_UK, [ids[slot][2] for slot in slots], atol=1e-6)
    assert batch.values_UK.shape[1] == own.spec.value_dims


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_sizes_are_those_that_are_laid(mix):
    documents = encoder(**mix).encode(TRAIN)
    for row in range(len(TRAIN)):
        laid = documents.lay(np.array([row]))
        assert int((laid.document_BT == 0).sum()) == documents.sizes[row]


def test_the_spec_describes_two_kinds_of_values():
    spec = ENCODER.spec
    cells, patches = spec.value_kinds
    assert cells == ValueKind(1, ENCODER.cells.spec.value_dims, shared=False)
    assert patches == ValueKind(4, 16, shared=True)
    assert (spec.value_dims, spec.value_ids) == (16, 5)
    assert spec.num_fixed == 4 + 2 * 2 + 1
    assert spec.first_value_id == spec.vocab_size - 5
    one = encoder(images=()).spec
    assert one.value_kinds == ()
    assert one.kinds == (ValueKind(1, one.value_dims, shared=False),)


def test_two_columns_of_images_share_a_matrix_and_not_their_places():
    train = [record | {"plan": record["photo"]} for record in TRAIN]
    own = encoder(train, images=("photo", "plan"))
    assert own.spec.value_kinds[1] == ValueKind(8, 16, shared=True)
    batch = own.encode(train).lay(np.array([0]))
    patches = batch.ids_BT.flatten()[batch.slots_U][1:]
    assert patches.tolist() == list(range(own.spec.vocab_size - 8, own.spec.vocab_size))
    assert torch.equal(batch.values_UK[1:5], batch.values_UK[5:9])


def test_no_id_means_two_things():
    said = {}
    for row in range(len(TRAIN)):
        batch = ENCODER.encode([TRAIN[row]]).lay(np.array([0]))
        for id_ in batch.ids_BT[batch.document_BT == 0].tolist():
            said[id_] = ENCODER.names[id_]
    assert len(set(said.values())) == len(said)
    assert "" not in said.values()
    assert {"<title>", "<story>", "<no story>", "<no photo>", "[area]", "[no area]"} <= {
        *said.values()
    }
    assert {"[city: Lhasa]", "[photo 1]", "[photo 4]"} <= {*said.values()}


def test_what_is_hidden_says_which_column_or_place_it_was():
    spec = ENCODER.spec
    words = [ENCODER.names[i] for i in spec.hidden]
    for id_, (name, hidden) in enumerate(zip(ENCODER.names, words, strict=True)):
        if id_ < spec.num_fixed:
            assert hidden == name
        elif name.startswith("[photo"):
            assert hidden == name.removesuffix("]").removesuffix("?") + "?]"
        elif "area" in name or "city" in name:
            assert hidden in ("[area?]", "[city?]")
        else:
            assert spec.hidden[id_] == MASK_ID


def test_a_masked_objective_takes_from_every_kind_and_never_a_mark_of_the_layout():
    plain = ENCODER.encode(TRAIN).lay(np.arange(len(TRAIN)))
    kinds = {"cell id": 0, "token": 0, "cell value": 0, "patch": 0}
    spec, first_token = ENCODER.spec, ENCODER._begins[0][1]
    for seed in range(20):
        found = for_masked(plain, 0.4, spec, np.random.default_rng(seed))
        changed = (found.ids_BT != plain.ids_BT) | (found.weight_BT != 0)
        fixed = (plain.ids_BT < spec.num_fixed) & (plain.document_BT != PADDING)
        assert not changed[fixed].any()
        put = found.ids_BT[(found.ids_BT != plain.ids_BT)]
        assert ((put >= spec.num_fixed) | (put == MASK_ID)).all()
        ids = plain.ids_BT[found.weight_BT != 0]
        kinds["cell id"] += int((ids < first_token).sum())
        kinds["token"] += int((ids >= first_token).sum())
        hidden = plain.ids_BT.flatten()[found.hidden_slots_U]
        kinds["cell value"] += int((hidden == spec.first_value_id).sum())
        kinds["patch"] += int((hidden > spec.first_value_id).sum())
        assert torch.equal(
            found.hidden_UK, plain.values_UK[torch.isin(plain.slots_U, found.hidden_slots_U)]
        )
    assert all(count > 50 for count in kinds.values())


def test_hiding_in_fine_tuning_leaves_the_marks_alone():
    plain = ENCODER.encode(TRAIN).lay(np.arange(len(TRAIN)))
    found = hide(plain, 0.9, ENCODER.spec, np.random.default_rng(0))
    fixed = plain.ids_BT < ENCODER.spec.num_fixed
    assert torch.equal(found.ids_BT[fixed], plain.ids_BT[fixed])
    assert len(found.values_UK) < len(plain.values_UK) / 2


def test_nothing_is_fitted_on_what_is_encoded():
    odd = {"area": 1e9, "city": "Mars", "title": "Ωδή", "story": "never seen"}
    held_out = [odd | {"photo": png(np.random.default_rng(9), 32)}] * 3
    first = ENCODER.encode(TRAIN).lay(np.arange(5))
    encoded = ENCODER.encode(held_out)
    assert np.array_equal(first.ids_BT, ENCODER.encode(TRAIN).lay(np.arange(5)).ids_BT)
    again = encoder().encode(held_out)
    assert torch.equal(encoded.lay(np.arange(3)).ids_BT, again.lay(np.arange(3)).ids_BT)
    assert torch.equal(encoded.lay(np.arange(3)).values_UK, again.lay(np.arange(3)).values_UK)


def test_missing_and_unusable_parts_are_counted_and_stand_as_missing():
    record = {"area": "wide", "city": None, "title": "", "story": None, "photo": "no such file"}
    assert ENCODER.count([record]) == {"missing": 3, "unreadable": 2, "unknown": 0, "clipped": 0}
    batch = ENCODER.encode([record]).lay(np.array([0]))
    words = ENCODER.pieces(batch.ids_BT[batch.document_BT == 0].tolist())
    assert words == ["[no area]", "[no city]", "<no title>", "<no story>", "<no photo>"]
    assert len(batch.values_UK) == 0
    masked = for_masked(batch, 0.5, ENCODER.spec, np.random.default_rng(0))
    assert float(masked.weight_BT.sum()) >= 1


def test_a_split_without_any_text_or_image_can_be_laid(tmp_path):
    nothing = [record | {"title": None, "story": None, "photo": None} for record in TRAIN]
    documents = ENCODER.encode(nothing)
    assert set(documents.sizes.tolist()) == {5}
    documents.save(tmp_path, "test")
    ENCODER.save(tmp_path)
    loaded = load(tmp_path).load_documents(tmp_path, "test")
    assert torch.equal(loaded.lay(np.arange(40)).ids_BT, documents.lay(np.arange(40)).ids_BT)


def test_texts_are_cut_and_each_record_says_how_many():
    long = [{"title": "far " * 50, "story": "park " * 50}, {"title": "far", "story": None}]
    documents = ENCODER.encode(long)
    assert ENCODER.cut(documents).tolist() == [2, 0]
    assert documents.sizes[0] == 2 + 7 + 7 + 1


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_saved_encoder_and_its_documents_are_the_same(tmp_path, mix):
    own = encoder(**mix)
    own.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, RecordEncoder)
    assert loaded.spec == own.spec
    documents = own.encode(TRAIN)
    documents.save(tmp_path, "train")
    again = loaded.load_documents(tmp_path, "train")
    rows = np.array([5, 1, 30])
    for one in (again, loaded.encode(TRAIN)):
        batch, other = one.lay(rows), documents.lay(rows)
        assert torch.equal(batch.ids_BT, other.ids_BT)
        assert torch.equal(batch.position_BT, other.position_BT)
        if other.values_UK is not None:
            assert torch.equal(batch.values_UK, other.values_UK)


def test_a_table_of_cells_alone_is_encoded_as_ever(tmp_path):
    table = encoder(texts=("title",), images=()).cells
    table.save(tmp_path)
    assert load(tmp_path) == table
    assert isinstance(load(tmp_path), TableEncoder)
    assert "texts" not in json.loads((tmp_path / "encoder.json").read_text())


def test_a_generator_augments_images_and_nothing_else():
    image = dataclasses.replace(ENCODER.image, augment=Augment(flip=True, shift=0.3))
    own = dataclasses.replace(ENCODER, image=image)
    documents, rows = own.encode(TRAIN), np.array([0, 4, 8])
    plain = documents.lay(rows)
    varied = documents.lay(rows, np.random.default_rng(1))
    assert torch.equal(plain.ids_BT, varied.ids_BT)
    ids = plain.ids_BT.flatten()[plain.slots_U]
    cells = ids == own.spec.first_value_id
    assert torch.equal(plain.values_UK[cells], varied.values_UK[cells])
    assert not torch.equal(plain.values_UK[~cells], varied.values_UK[~cells])
    assert torch.equal(varied.values_UK, documents.lay(rows, np.random.default_rng(1)).values_UK)


def test_two_views_of_a_record_hide_and_augment_apart():
    image = dataclasses.replace(ENCODER.image, augment=Augment(shift=0.3))
    own = dataclasses.replace(ENCODER, image=image)
    labels = torch.arange(len(TRAIN))
    loader = DocumentLoader(
        own.encode(TRAIN), labels, 8, 1, 5, own.spec, mask_probability=0.3, views=2
    )
    (batch,) = loader.load(0, 1)
    assert batch.num_documents == 16
    assert torch.equal(batch.label[:8], batch.label[8:])
    assert torch.equal(batch.row_N[:8], batch.row_N[8:])
    first, second = (
        [batch.ids_BT[batch.document_BT == number].tolist() for number in range(*bounds)]
        for bounds in ((0, 8), (8, 16))
    )
    assert [len(ids) for ids in first] == [len(ids) for ids in second]
    assert first != second
    (again,) = loader.load(0, 1)
    assert torch.equal(again.values_UK, batch.values_UK)


TEXTS = st.none() | st.text(max_size=30)
CELLS = st.none() | st.floats() | st.text(max_size=6)


@settings(deadline=None, max_examples=100)
@given(
    record=st.fixed_dictionaries(
        {},
        optional={
            "area": CELLS, "city": CELLS, "title": TEXTS, "story": TEXTS,
            "photo": st.sampled_from([None, "bad", PHOTO]),
        },
    )
)  # fmt: skip
def test_any_record_is_laid_within_the_vocabulary(record):
    documents = ENCODER.encode([record])
    batch = documents.lay(np.array([0]))
    assert int(batch.ids_BT.max()) < ENCODER.spec.vocab_size
    assert int((batch.document_BT == 0).sum()) == documents.sizes[0]
    assert torch.isfinite(batch.values_UK).all()
    assert sum(ENCODER.count([record]).values()) <= 5
    carried = batch.ids_BT.flatten()[batch.slots_U]
    assert (carried >= ENCODER.spec.first_value_id).all()
    assert len(carried) == int((batch.ids_BT >= ENCODER.spec.first_value_id).sum())


def test_a_text_begins_with_its_column():
    batch = ENCODER.encode(TRAIN).lay(np.array([0]))
    ids = batch.ids_BT[batch.document_BT == 0].tolist()
    assert BEGIN_ID not in ids
    assert ids.count(4) == ids.count(6) == 1
