"""The tokenizer loses nothing, knows every byte and obeys no text."""

import json
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data.modality import BEGIN_ID, END_ID, NUM_SPECIAL, SPECIAL
from danlu.data.text import Documents, Encoder, coverage, train
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
    report = coverage(["好" * 50, "a"], lengths, Documents.of(documents))
    assert report["documents"] == 2
    assert report["pieces"] == 0
    assert report["truncated"] == 1
    assert report["tokens"] == 10
    assert report["truncated_token_share"] == round(1 - 10 / lengths.sum(), 5)
    assert report["bytes_per_token"] == round(151 / (lengths.sum() - 2), 4)


@settings(deadline=None)
@given(
    contents=st.lists(st.lists(st.integers(4, 99), max_size=40), min_size=1, max_size=8),
    length=st.integers(2, 20),
)
def test_pieces_hold_every_token_after_the_beginning_once(contents, length):
    texts = [np.array([BEGIN_ID, *content], np.int32) for content in contents]
    documents = Documents.in_pieces(texts, length)
    assert documents.sizes.max() <= length
    assert (np.diff(documents.text_N) >= 0).all()
    assert set(documents.text_N.tolist()) == set(range(len(texts)))  # the empty one too
    found = [[] for _ in texts]
    for row, text in enumerate(documents.text_N.tolist()):
        piece = documents[row].tolist()
        assert piece[0] == BEGIN_ID
        assert BEGIN_ID not in piece[1:]
        found[text] += piece[1:]
    assert found == contents
    for text, content in enumerate(contents):
        own = documents.sizes[documents.text_N == text]
        assert (own[:-1] == length).all(), "only a text's last piece may be short"
        assert len(own) == max(1, -(-len(content) // (length - 1)))


@settings(deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab 好", max_size=40), min_size=1, max_size=6),
    length=st.integers(8, 20),
    causal=st.booleans(),
)
def test_coverage_counts_pieces_and_cuts_nothing(encoder, texts, length, causal):
    whole, lengths = Encoder(encoder.tokenizer, sys.maxsize, causal)(texts)
    assert lengths.tolist() == [len(ids) for ids in whole]
    documents = Documents.in_pieces(whole, length)
    report = coverage(texts, lengths, documents)
    assert report["documents"] == len(texts)
    assert report["pieces"] == len(documents) - len(texts)
    assert report["truncated"] == 0
    assert report["truncated_token_share"] == 0
    # What the model sees: a text's tokens, and a <bos> for each further piece.
    assert report["tokens"] == lengths.sum() + report["pieces"]
    size = sum(len(text.encode()) for text in texts)
    assert report["bytes_per_token"] == round(size / max(1, lengths.sum() - len(texts)), 4)
    assert report["p95_tokens"] == int(np.quantile(lengths, 0.95))


def test_a_text_in_pieces_ends_with_one_end_token(encoder):
    whole, _ = Encoder(encoder.tokenizer, sys.maxsize, causal=True)(["好" * 50, "a"])
    documents = Documents.in_pieces(whole, 8)
    assert (documents.ids == END_ID).sum() == 2
    last = np.flatnonzero(np.diff(documents.text_N, append=2))
    assert [documents[row][-1] for row in last] == [END_ID, END_ID]


def test_the_bytes_of_a_text_are_those_of_its_pieces(encoder):
    text = CORPUS[0] * 5 + "<mask> é👩‍👧"
    whole, _ = encoder([text])
    documents = Documents.in_pieces(whole, 9)
    assert len(documents) == 5
    held = sum(encoder.bytes_of(documents[row]) for row in range(len(documents)))
    assert held == len(text.encode())


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
    assert loaded.text_N.tolist() == list(range(len(contents)))


def test_pieces_come_back_from_disk_with_the_texts_that_they_are_of(tmp_path):
    texts = [np.arange(2, 2 + size, dtype=np.int32) for size in (10, 3, 17)]
    documents = Documents.in_pieces(texts, 6)
    documents.save(tmp_path, "train")
    loaded = Documents.load(tmp_path, "train")
    assert loaded.text_N.tolist() == documents.text_N.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert loaded.ids.tolist() == documents.ids.tolist()
    assert loaded.offsets.tolist() == documents.offsets.tolist()


def test_no_documents_are_refused():
    with pytest.raises(DataError, match="no document"):
        Documents.of([])
