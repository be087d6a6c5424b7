"""The engine: answers that depend on the text alone, and errors that say what is wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASSES, MAX_LENGTH, MIXED, build

from danlu.artifact import read_json, write_json
from danlu.data import modality, text
from danlu.errors import ArtifactError, DanluError, InputError
from danlu.serve.engine import Engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder, device=torch.device("cpu"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def _table(predictions):
    return np.asarray([[p["probabilities"][name] for name in CLASSES] for p in predictions])


def test_answers_do_not_depend_on_the_batch(engine):
    alone = engine.predict(MIXED, batch_size=1)
    assert len({answer["label"] for answer in alone}) > 1, "the model must tell texts apart"
    by_itself = [engine.predict([one])[0] for one in MIXED[:8]]
    assert np.abs(_table(by_itself) - _table(alone[:8])).max() < 1e-5
    for size in (7, 32):
        together = engine.predict(MIXED, batch_size=size)
        assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
        assert np.abs(_table(together) - _table(alone)).max() < 1e-5
    backwards = engine.predict(MIXED[::-1], batch_size=7)[::-1]
    assert np.abs(_table(backwards) - _table(alone)).max() < 1e-5


def test_answers_come_in_the_order_of_the_texts(engine):
    assert engine.answers(MIXED, 3) == pytest.approx(_table(engine.predict(MIXED)), abs=1e-5)


def test_an_answer_names_the_likeliest_class_and_every_probability(engine):
    for answer in engine.predict(MIXED):
        each = answer["probabilities"]
        assert list(each) == CLASSES
        assert sum(each.values()) == pytest.approx(1)
        assert answer["probability"] == max(each.values()) == each[answer["label"]]


def test_answers_equal_the_model_run_by_hand_on_one_document(folder, engine):
    ids = [modality.BEGIN_ID, *engine.reader.encoder.tokenizer.encode("the room was clean").ids]
    row = torch.tensor([ids])
    with torch.no_grad():
        hidden = engine.model.backbone(row, torch.arange(len(ids))[None], torch.zeros_like(row))
        stored = load_file(folder / "model.safetensors")
        raw = stored["head.output.weight"] @ hidden[0].mean(0) + stored["head.output.bias"]
    expected = torch.softmax(raw, 0).numpy()
    assert engine.answers(["the room was clean"])[0] == pytest.approx(expected, abs=1e-5)


def test_a_text_longer_than_the_model_sees_is_said_to_be_cut(engine):
    short, long = engine.predict(["the room was clean", "breakfast " * 60])
    assert not short["truncated"]
    assert long["truncated"]
    assert long["tokens"] > MAX_LENGTH >= short["tokens"] > 1


def test_only_what_is_beyond_the_limit_is_cut(engine):
    """One token for each of these characters: the border is exact."""
    fits, over = engine.predict(["Q" * (MAX_LENGTH - 1), "Q" * MAX_LENGTH])
    assert (fits["tokens"], fits["truncated"]) == (MAX_LENGTH, False)
    assert (over["tokens"], over["truncated"]) == (MAX_LENGTH + 1, True)
    assert over["probabilities"] == pytest.approx(fits["probabilities"], abs=1e-5)


def test_no_texts_have_no_answers(engine):
    assert engine.predict([]) == []


def test_no_texts_have_an_empty_table_of_answers(engine):
    assert engine.answers([]).shape == (0, len(CLASSES))


@pytest.mark.parametrize(
    ("raw", "scrubbed"),
    [
        ("write to li.lei@example.com about the room", "write to [EMAIL] about the room"),
        ("房间请打电话13800138000", "房间请打电话[PHONE]"),
        ("the  room\u200b was\u00a0clean ", "the room was clean"),
        ("cafe\u0301", "café"),
        ("one\r\n\r\ntwo", "one\ntwo"),
    ],
)
def test_a_text_is_scrubbed_as_in_training(engine, raw, scrubbed):
    assert engine.predict([raw]) == engine.predict([scrubbed])


def test_what_training_did_not_redact_is_left(copy):
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", config | {"redact": []})
    given, placeholder = Engine.load(copy).predict(["ask a@example.com", "ask [EMAIL]"])
    assert given["probabilities"] != placeholder["probabilities"]


def test_a_text_that_spells_a_special_token_is_plain_text(engine):
    masked, shorter = engine.predict(["<mask>", "x"])
    assert masked["tokens"] > shorter["tokens"] == 2


def test_several_labels_are_those_of_at_least_one_half(tmp_path):
    engine = Engine.load(build(tmp_path / "labels", "multilabel"))
    answers = engine.predict(MIXED)
    for answer in answers:
        each = answer["probabilities"]
        assert answer["labels"] == [name for name in CLASSES if each[name] >= 0.5]
        assert "label" not in answer
    sums = [sum(answer["probabilities"].values()) for answer in answers]
    assert np.std(sums) > 0.01, "labels are not exclusive"


def test_values_are_in_the_unit_of_the_label(tmp_path):
    scaled = Engine.load(build(tmp_path / "a", "regress"))
    plain = Engine.load(build(tmp_path / "b", "regress", scale={"mean": 0.0, "std": 1.0}))
    values = [answer["value"] for answer in scaled.predict(MIXED)]
    expected = [3 + 2 * answer["value"] for answer in plain.predict(MIXED)]
    assert values == pytest.approx(expected, abs=1e-5)
    assert scaled.answers(MIXED).shape == (len(MIXED),)
    assert np.std(values) > 0.01


def test_a_missing_folder_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="no released model"):
        Engine.load(tmp_path / "nowhere")


def test_a_folder_without_a_configuration_is_the_users_error(copy):
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match="no released model"):
        Engine.load(copy)


def test_a_model_that_was_only_pretrained_is_refused(tmp_path):
    with pytest.raises(InputError, match="only pre-trained"):
        Engine.load(build(tmp_path / "masked", "masked"))


def test_weights_of_another_shape_are_refused(copy):
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", config | {"classes": ["yes", "no"]})
    with pytest.raises(ArtifactError, match="do not fit"):
        Engine.load(copy)


def test_weights_with_a_tensor_too_few_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["head.output.bias"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"head\.output\.bias"):
        Engine.load(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_truncated_file_is_a_damaged_artifact(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError):
        Engine.load(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_in_a_danlu_error(copy, name):
    (copy / name).unlink()
    with pytest.raises(DanluError, match=name.replace(".", r"\.")):
        Engine.load(copy)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(copy):
    text.train([f"word{n} number{n}" for n in range(400)], 900).save(str(copy / text.FILE))
    with pytest.raises(ArtifactError):
        Engine.load(copy)


def test_a_configuration_that_lacks_a_key_is_a_damaged_artifact(copy):
    config = read_json(copy / "config.json")
    del config["max_length"]
    write_json(copy / "config.json", config)
    with pytest.raises(ArtifactError, match="max_length"):
        Engine.load(copy)
