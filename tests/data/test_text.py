"""The tokenizer loses nothing, knows every byte and obeys no text."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data.text import (
    BEGIN_ID,
    END_ID,
    NUM_SPECIAL,
    SPECIAL,
    Documents,
    Encoder,
    coverage,
    train,
)
from danlu.errors import DataError

CORPUS = [
    "这家酒店的服务非常好，房间也很干净。",
    "The room was clean and quiet.",
    "早餐不错 ok",
] * 20


@pytest.fixture(scope="module")
def encoder():
    return Encoder(train(CORPUS, 400), 10_000)


@settings(deadline=None)
@given(text=st.text())
@example(text="<mask>")
@example(text=" <pad><bos>\n<eos>")
@example(text="\x00\u200b\ufffd\u0301é👩‍👧")
@example(text="  \t\n\n ")
def test_any_text_comes_back_whole_and_holds_no_special_token(encoder, text):
    [ids], [length] = encoder([text])
    assert ids[0] == BEGIN_ID
    assert length == len(ids)
    assert all(i >= NUM_SPECIAL for i in ids[1:])
    assert encoder.tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False) == text


def test_a_corpus_full_of_special_names_teaches_no_special_token():
    texts = ["<mask><pad> <bos> <eos>"] * 200
    [ids], _ = Encoder(train(texts, 400), 100)(texts[:1])
    assert (ids[1:] >= NUM_SPECIAL).all()


def test_the_special_tokens_have_the_first_places(encoder):
    assert [encoder.tokenizer.token_to_id(name) for name in SPECIAL] == [0, 1, 2, 3]
    assert encoder.pieces(range(4)) == list(SPECIAL)


def test_a_saved_tokenizer_encodes_alike_and_still_obeys_no_text(encoder, tmp_path):
    path = tmp_path / "tokenizer.json"
    encoder.tokenizer.save(str(path))
    loaded = Encoder.load(path, 10_000, False)
    texts = [*CORPUS[:3], "a <mask> b"]
    assert [d.tolist() for d in loaded(texts)[0]] == [d.tolist() for d in encoder(texts)[0]]
    assert all((d[1:] >= NUM_SPECIAL).all() for d in loaded(texts)[0])


def test_training_is_deterministic_and_no_larger_than_asked():
    first, second = train(CORPUS, 350), train(iter(CORPUS), 350)
    assert json.loads(first.to_str()) == json.loads(second.to_str())
    assert first.get_vocab_size() <= 350
    assert train(CORPUS, 300).get_vocab_size() < first.get_vocab_size()


def test_merges_make_texts_like_the_corpus_shorter():
    text = CORPUS[0]
    small, large = Encoder(train(CORPUS, 270), 1000), Encoder(train(CORPUS, 400), 1000)
    assert large([text])[1][0] < small([text])[1][0] <= len(text.encode()) + 1


def test_a_long_text_is_cut_and_counted(encoder):
    short = Encoder(encoder.tokenizer, 8)
    documents, lengths = short(["好" * 50, "a"])
    whole, _ = encoder(["好" * 50])
    assert documents[0].tolist() == whole[0][:8].tolist()
    assert lengths[0] == len(whole[0])
    assert len(documents[1]) == lengths[1] == 2
    report = coverage(["好" * 50, "a"], lengths, 8)
    assert report["truncated"] == 1
    assert report["tokens"] == 10
    assert report["truncated_token_share"] == round(1 - 10 / lengths.sum(), 5)
    assert report["bytes_per_token"] == round(151 / (lengths.sum() - 2), 4)


def test_a_causal_document_ends_with_the_end_token_unless_cut(encoder):
    causal = Encoder(encoder.tokenizer, 8, causal=True)
    (short, long), lengths = causal(["a", "好" * 50])
    assert short.tolist()[-1] == END_ID
    assert long[-1] != END_ID
    assert lengths[0] == 3


def test_an_empty_text_is_a_document_of_its_own(encoder):
    [ids], [length] = encoder([""])
    assert ids.tolist() == [BEGIN_ID]
    assert length == 1


def test_half_a_character_is_shown_as_a_dot(encoder):
    [ids], _ = Encoder(train(["a"], 270), 10)(["丹"])
    fresh = Encoder(train(["a"], 270), 10)
    assert fresh.pieces(ids) == ["<bos>", "·", "·", "·"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=6))
def test_documents_come_back_from_disk_as_they_were(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("documents")
    Documents.of([np.array(c, np.int32) for c in contents]).save(folder, "train")
    loaded = Documents.load(folder, "train")
    assert [loaded[i].tolist() for i in range(len(loaded))] == contents
    assert loaded.sizes.tolist() == list(map(len, contents))


def test_no_documents_are_refused():
    with pytest.raises(DataError, match="no document"):
        Documents.of([])
