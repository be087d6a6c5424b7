"""Tokenizers that came with checkpoints: the ids are those of the library that they are of."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from checkpoints import TEXTS, TOKENIZERS, save_tokenizer
from danlu.data import text
from danlu.data.adopt import adopt, locate
from danlu.data.hide import for_masked
from danlu.data.marks import OWN, ROLES, Marks
from danlu.errors import InputError

ENCODERS = ("wordpiece", "unigram")


@pytest.fixture(params=TOKENIZERS)
def kind(request):
    return request.param


def taken(folder, kind):
    """Return the tokenizer as it is, and the folder that danlu's copy lies in."""
    given, own = folder / "given", folder / "own"
    given.mkdir()
    own.mkdir()
    tokenizer = save_tokenizer(given, kind)
    told = {ROLES: json.loads((given / ROLES).read_text())}
    adopt(given, told, tokenizer.get_vocab_size(), own)
    return tokenizer, own


def test_ids_are_those_of_the_tokenizer_itself(kind, tmp_path):
    tokenizer, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 512, causal=False)
    found, lengths = encoder(TEXTS)
    for ids, wanted, length in zip(found, tokenizer.encode_batch(TEXTS), lengths, strict=True):
        assert ids.tolist() == wanted.ids
        assert length == len(wanted.ids)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_text_that_is_cut_keeps_its_marks_as_the_library_does(kind, tmp_path):
    tokenizer, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 7, causal=False)
    whole = [len(encoding.ids) for encoding in tokenizer.encode_batch(TEXTS)]
    tokenizer.enable_truncation(7)
    found, lengths = encoder(TEXTS)
    assert [ids.tolist() for ids in found] == [e.ids for e in tokenizer.encode_batch(TEXTS)]
    assert lengths.tolist() == whole
    assert max(whole) > 7


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_a_text_to_be_foretold_is_closed_unless_it_is_cut(kind, tmp_path):
    tokenizer, own = taken(tmp_path, kind)
    end = tokenizer.token_to_id("<|end|>")
    encoder = text.Encoder.load(own / text.FILE, 512, causal=True)
    ids = encoder(TEXTS[:1])[0][0].tolist()
    assert ids == [*tokenizer.encode(TEXTS[0]).ids, end]
    short = text.Encoder.load(own / text.FILE, 5, causal=True)
    assert short(TEXTS[:1])[0][0].tolist() == ids[:5]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [6, 9, 50])
def test_pieces_hold_every_token_once_each_between_its_marks(kind, length, causal, tmp_path):
    _, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 10**6, causal)
    documents, lengths = encoder(TEXTS)
    pieces = text.Documents.in_pieces(documents, length, encoder.marks)
    prefix, suffix = list(encoder.marks.prefix), list(encoder.marks.suffix)
    bodies = {}
    for row in range(len(pieces)):
        ids = pieces[row].tolist()
        assert 1 <= len(ids) <= length
        assert ids[: len(prefix)] == prefix
        assert ids[len(ids) - len(suffix) :] == suffix
        body = ids[len(prefix) : len(ids) - len(suffix)]
        bodies.setdefault(int(pieces.text_N[row]), []).extend(body)
    for number, document in enumerate(documents):
        assert bodies[number] == document[len(prefix) : len(document) - len(suffix)].tolist()
    told = text.coverage(TEXTS, lengths, pieces, encoder.marks)
    assert told["truncated"] == 0
    assert told["truncated_token_share"] == 0


def test_a_text_that_spells_a_special_token_is_text(kind, tmp_path):
    _, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 512, causal=False)
    spelled = " ".join(name for name in TOKENIZERS[kind]()[1].values())
    marks = encoder.marks
    unknown = encoder.tokenizer.token_to_id(TOKENIZERS[kind]()[1].get("unk_token", "none"))
    ids = encoder([spelled])[0][0].tolist()
    body = ids[len(marks.prefix) : len(ids) - len(marks.suffix)]
    assert body
    assert not set(body) & set(marks.special) - {unknown}


def test_a_text_of_which_no_token_is_left_is_a_document_still(kind, tmp_path):
    _, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 512, causal=False)
    assert len(encoder(["\u0000" if kind == "wordpiece" else ""])[0][0]) >= 1


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_hidden_is_never_a_mark_and_becomes_the_mask(kind, tmp_path):
    _, own = taken(tmp_path, kind)
    encoder = text.Encoder.load(own / text.FILE, 512, causal=False)
    spec = encoder.spec
    documents = text.Documents.of(encoder(TEXTS)[0])
    batch = documents.lay(np.arange(len(documents)))
    hidden = for_masked(batch, 0.5, spec, np.random.default_rng(0))
    chosen = hidden.weight_BT.bool()
    assert chosen.sum() > 100
    assert not set(batch.ids_BT[chosen].tolist()) & set(encoder.marks.special)
    mask = encoder.tokenizer.token_to_id({"wordpiece": "[MASK]", "unigram": "<mask>"}[kind])
    share = float((hidden.ids_BT[chosen] == mask).float().mean())
    assert 0.7 < share < 0.9


def test_bytes_are_those_of_the_text(tmp_path):
    for kind in ("llama", "qwen"):
        folder = tmp_path / kind
        folder.mkdir()
        _, own = taken(folder, kind)
        encoder = text.Encoder.load(own / text.FILE, 512, causal=True)
        for words, ids in zip(TEXTS, encoder(TEXTS)[0], strict=True):
            assert encoder.bytes_of(ids) == len(words.encode())
    _, own = taken(tmp_path, "unigram")
    encoder = text.Encoder.load(own / text.FILE, 512, causal=False)
    assert encoder.bytes_of(encoder(["the weather report"])[0][0]) == len("the weather report")


def test_a_tokenizer_of_ones_own_has_the_marks_that_it_always_had(tmp_path):
    text.train(TEXTS, 300).save(str(tmp_path / text.FILE))
    encoder = text.Encoder.load(tmp_path / text.FILE, 64, causal=True)
    assert encoder.marks == OWN == Marks()
    assert encoder(TEXTS[:1])[0][0][[0, -1]].tolist() == [2, 3]


def refused(folder, rows, words, told=None):
    target = folder / "target"
    target.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=words) as caught:
        adopt(folder, told or {}, rows, target)
    assert caught.value.exit_code == 2
    assert not list(target.iterdir())


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    size = save_tokenizer(tmp_path, "wordpiece").get_vocab_size()
    words = rf"tokenizer.json has {size} tokens and the model's embedding"
    refused(tmp_path, size - 1, words)
    refused(tmp_path, 2 * size, words)


def test_rows_that_no_token_has_are_counted(tmp_path):
    size = save_tokenizer(tmp_path, "wordpiece").get_vocab_size()
    own = tmp_path / "own"
    own.mkdir()
    assert adopt(tmp_path, {}, size + 5, own)[1] == 5


def test_what_is_no_tokenizer_is_refused(tmp_path):
    refused(tmp_path, 120, "the checkpoint has no tokenizer.json")
    for content in ("", "{}", "[" * 10**5, '{"model": {"type": "Pickle"}}'):
        (tmp_path / text.FILE).write_text(content)
        refused(tmp_path, 120, "tokenizer.json is damaged")


def test_a_special_token_that_is_not_there_is_named(tmp_path):
    size = save_tokenizer(tmp_path, "wordpiece").get_vocab_size()
    told = {ROLES: {"mask_token": {"content": "<blank>"}}}
    refused(tmp_path, size, "lacks the special token '<blank>'", told)


def test_the_folder_of_a_checkpoint_is_found_or_refused(tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    for where, words in (
        (str(tmp_path / "none"), "there is no such folder"),
        ("package:no-such-package/model", "is not installed"),
        ("package:pytest/no/such/folder", "holds no folder 'no/such/folder'"),
    ):
        with pytest.raises(InputError, match=words):
            locate(where)
    assert (locate("package:pytest/_pytest/config") / "findpaths.py").is_file()


def test_a_copy_reads_as_the_reference_library_reads_it(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer, own = taken(tmp_path, kind)
    shutil.copy(own / text.FILE, tmp_path)
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(own)
    for words in TEXTS[:9]:
        assert loaded(words)["input_ids"] == tokenizer.encode(words).ids
    assert Tokenizer.from_file(str(own / text.FILE)).truncation is None
