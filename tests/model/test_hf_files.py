"""Checkpoints that are hostile, damaged or of something else: refused by name, nothing run."""

import json
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.errors import InputError
from danlu.model import hf
from danlu.model.hf.files import CONFIG, INDEX, WEIGHTS

pytest.importorskip("transformers")
from open_models import make


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Three small checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("bert", "llama", "vit"):
        make(name).save_pretrained(folder / name)
    make("llama").save_pretrained(folder / "shards", max_shard_size="20KB")
    return folder


@pytest.fixture
def bert(kept, tmp_path):
    return shutil.copytree(kept / "bert", tmp_path / "bert")


@pytest.fixture
def llama(kept, tmp_path):
    return shutil.copytree(kept / "llama", tmp_path / "llama")


@pytest.fixture
def shards(kept, tmp_path):
    return shutil.copytree(kept / "shards", tmp_path / "shards")


def configure(folder, **changes):
    settings = json.loads((folder / CONFIG).read_text())
    settings |= changes
    kept = {key: value for key, value in settings.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))
    return folder


def reindex(folder, change):
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))
    return folder


def refused(folder, words):
    with pytest.raises(InputError, match=words) as caught:
        hf.read(folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_pickle_is_refused_and_not_read(bert, tmp_path):
    trace = tmp_path / "ran"
    (bert / WEIGHTS).unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    refused(bert, "the weights are a pickle, pytorch_model.bin, which runs code")
    assert not trace.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(bert, tmp_path):
    trace = tmp_path / "ran"
    (bert / WEIGHTS).write_bytes(pickle.dumps(Bomb(trace)))
    refused(bert, "model.safetensors is damaged, or no safetensors file")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()  # the bomb is a real one
    assert trace.exists()


def test_code_of_the_checkpoints_own_is_refused(bert):
    (bert / "modeling.py").write_text("raise SystemExit('ran')")
    configure(bert, auto_map={"AutoModel": "modeling.Model"})
    refused(bert, "auto_map: the checkpoint asks to run code of its own")


@pytest.mark.parametrize("size", [0, 4, 8, 60, -50])
def test_a_truncated_file_is_refused(bert, size):
    whole = (bert / WEIGHTS).read_bytes()
    (bert / WEIGHTS).write_bytes(whole[:size])
    refused(bert, "model.safetensors is damaged")


def test_a_header_that_lies_about_its_length_is_refused(bert):
    whole = (bert / WEIGHTS).read_bytes()
    (bert / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    refused(bert, "model.safetensors is damaged")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors",
                                  "..\\x.safetensors", "weights.bin", 7, None])  # fmt: skip
def test_an_index_that_leads_out_of_the_folder_is_refused(shards, name):
    outside = shards.parent / "elsewhere.safetensors"
    save_file({"model.norm.weight": torch.ones(32)}, outside)
    reindex(shards, lambda places: places.update({"model.norm.weight": name}))
    refused(shards, "which is no safetensors file beside it")


def test_a_missing_shard_is_named(shards):
    gone = next(shards.glob("*-of-*.safetensors"))
    gone.unlink()
    refused(shards, f"the checkpoint lacks {gone.name}")


def test_an_index_that_does_not_know_a_tensor_is_refused(shards):
    reindex(shards, lambda places: places.pop("model.norm.weight"))
    refused(shards, "disagree about 'model.norm.weight'")


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"weight_map": []}', "[" * 10**5])
def test_an_index_that_is_none_is_refused(shards, content):
    (shards / INDEX).write_text(content)
    refused(shards, INDEX)


@pytest.mark.parametrize("content", ["", "[1]", "{'model_type': 'bert'}", "[" * 10**5])
def test_a_configuration_that_is_none_is_refused(bert, content):
    (bert / CONFIG).write_text(content)
    refused(bert, "config.json")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    refused(tmp_path, "has no config.json")


@pytest.mark.parametrize("family", ["gpt2", "t5", "mamba", 3, ["bert"]])
def test_an_unknown_family_is_refused_with_those_that_are_known(bert, family):
    said = refused(configure(bert, model_type=family), "danlu reads bert")
    assert repr(family) in said
    for name in hf.FAMILIES:
        assert f"{name} (" in said


def test_a_checkpoint_of_no_family_is_refused(bert):
    refused(configure(bert, model_type=...), "of no family: config.json has no model_type")


def test_missing_and_surplus_tensors_are_named(bert):
    tensors = load_file(bert / WEIGHTS)
    tensors["bert.encoder.layer.1.attention.self.quarry.weight"] = tensors.pop(
        "bert.encoder.layer.1.attention.self.query.weight"
    )
    save_file(tensors, bert / WEIGHTS)
    said = refused(bert, r"lacks bert\.encoder\.layer\.1\.attention\.self\.query\.weight")
    assert "has bert.encoder.layer.1.attention.self.quarry.weight, which its family" in said


def test_of_many_missing_tensors_some_are_named_and_all_are_counted(llama):
    tensors = {k: t for k, t in load_file(llama / WEIGHTS).items() if "mlp" not in k}
    save_file(tensors, llama / WEIGHTS)
    refused(llama, r"mlp\.gate_proj\.weight.* and 3 more")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers 4, and there are 3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, and there are 3"),
        ({"vocab_size": 10**9}, r"has the shape \(50, 32\); by config.json it is \(10{9}, 32\)"),
        ({"intermediate_size": 64}, "has the shape"),
        ({"hidden_size": 10**20}, "hidden_size must be a whole number"),
        ({"hidden_size": -32}, "hidden_size must be a whole number"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": 33, "head_dim": ...}, "no multiple of num_attention_heads"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; danlu knows"),
        ({"hidden_act": ["silu"]}, "hidden_act is"),
        ({"num_key_value_heads": 3}, "describes no llama: num_kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'; danlu knows"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.5}}, "factor is at least 1"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_says_what_and_where(llama, changes, words):
    said = refused(configure(llama, **changes), words)
    assert str(llama) in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "danlu knows 'absolute' only"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_a_bert_that_computes_something_else_is_refused(bert, changes, words):
    refused(configure(bert, **changes), words)


def test_a_copy_that_is_none_is_refused(bert):
    tensors = load_file(bert / WEIGHTS)
    copy = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.weight"] = copy
    save_file(tensors, bert / WEIGHTS)
    assert hf.read(bert).head == "masked"
    copy[3, 4] += 1
    save_file(tensors, bert / WEIGHTS)
    refused(bert, "'cls.predictions.decoder.weight' should be the same as")


def test_a_head_that_bends_otherwise_is_left_behind_with_its_copies(bert, tmp_path):
    tensors = load_file(bert / WEIGHTS)
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    save_file(tensors, bert / WEIGHTS)
    refused(bert, "'cls.predictions.decoder.bias' should be the same as 'head.bias'")
    found = hf.read(configure(bert, hidden_act="gelu_new"))
    assert found.head is None
    assert "cls.predictions.transform.dense" in found.left_behind
    hf.write(tmp_path / "again", found)
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bert, value):
    tensors = load_file(bert / WEIGHTS)
    tensors["cls.predictions.bias"][7] = value
    save_file(tensors, bert / WEIGHTS)
    refused(bert, "'cls.predictions.bias' holds what is no finite number")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_quantised_weights_are_refused(bert, dtype):
    tensors = load_file(bert / WEIGHTS)
    tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"].to(dtype)
    save_file(tensors, bert / WEIGHTS)
    refused(bert, "is of type")


def test_the_older_names_of_a_norm_are_read(bert):
    wanted = hf.read(bert).weights
    older = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for key, tensor in load_file(bert / WEIGHTS).items()
    }
    older["bert.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(older, bert / WEIGHTS)
    found = hf.read(bert)
    assert all(torch.equal(found.weights[key], tensor) for key, tensor in wanted.items())
    assert found.left_behind == []


def test_an_image_model_without_its_patches_says_so(kept, tmp_path):
    vit = shutil.copytree(kept / "vit", tmp_path / "vit")
    tensors = load_file(vit / WEIGHTS)
    filters = tensors.pop("embeddings.patch_embeddings.projection.weight")
    save_file(tensors, vit / WEIGHTS)
    refused(vit, "lacks embeddings.patch_embeddings.projection.weight")
    tensors["embeddings.patch_embeddings.projection.weight"] = filters[:, :, :2].contiguous()
    save_file(tensors, vit / WEIGHTS)
    refused(vit, "projection.weight has the shape")
