"""Runs that begin from a checkpoint of others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import danlu
from checkpoints import TEXTS, save_tokenizer
from danlu.artifact import read_json
from danlu.errors import InputError, RecipeError
from danlu.model import heads, hf, native
from danlu.model.backbone import BackboneConfig

SIZES = {"num_layers": 2, "dim": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
         "hidden_dim": 48}  # fmt: skip
BERT = {
    **SIZES, "norm": "layer", "norm_place": "post", "norm_epsilon": 1e-12, "embedding_norm": True,
    "qkv_bias": True, "output_bias": True, "hidden_bias": True, "head_bias": True,
    "activation": "gelu", "num_positions": 40, "num_types": 2,
}  # fmt: skip
LLAMA = {**SIZES, "causal": True}


def checkpoint(folder, kind, **changes):
    """Write a small checkpoint with random weights; return danlu's model of it."""
    folder.mkdir(parents=True)
    size = save_tokenizer(folder, kind).get_vocab_size()
    torch.manual_seed(0)
    shape = BERT if kind == "wordpiece" else LLAMA
    config = BackboneConfig(vocab_size=size, **shape | changes)
    model = heads.build(config, "causal" if config.causal else "masked")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hf.write(folder, hf.of_model(model))
    return model


@pytest.fixture
def made(tmp_path):
    checkpoint(tmp_path / "bert", "wordpiece")
    rows = [{"text": words, "label": "good" if "loved" in words or "bought" in words else "bad"}
            for words in TEXTS]  # fmt: skip
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path


def write(folder, task="classify", start="bert", more=""):
    """Write a recipe that begins from a checkpoint beside it."""
    recipe = folder / "small.toml"
    label = 'label = "label"' if task == "classify" else ""
    recipe.write_text(f"""
[data]
task = "{task}"
{label}
sources = [{{ path = "rows.jsonl" }}]
[data.clean]
near_duplicates = "keep"
[data.split]
by = "random"
[model]
start = "{start}"
[evaluate]
bootstrap = 100
{more or "[tokenizer]" + chr(10) + "max_length = 24"}
""")
    return recipe


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_run_begins_from_the_checkpoint_and_its_tokenizer_travels_along(made, capsys):
    overrides = ["finetune.epochs=2", "finetune.batch_size=8"]
    result = danlu.run(write(made), made / "run", overrides, quiet=False)
    said = capsys.readouterr().err
    assert "a checkpoint of the family bert" in said
    assert "the head (classify) is new, and knows nothing yet" in said
    assert result.built[:3] == ["start", "data", "tokenizer"]
    begin = next(row for row in events(made / "run") if row["event"] == "begin")
    if native.library() is not None:
        assert begin["plain"] == "LayerNorm"
    model = made / "run" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (model / name).is_file()
    assert read_json(model / "config.json")["backbone"]["num_positions"] == 40
    answers = danlu.load(made / "run").predict(TEXTS[:3])
    assert answers[0]["tokens"] == len(load_tokenizer(made / "bert").encode(TEXTS[0]).ids)
    again = danlu.run(write(made), made / "run", overrides)
    assert again.built == []


def load_tokenizer(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.mark.parametrize(("kind", "objective"), [("wordpiece", "masked"), ("llama", "causal"),
                                                  ("qwen", "causal")])  # fmt: skip
def test_pre_training_goes_on_from_the_weights_and_the_head(made, kind, objective, capsys):
    model = checkpoint(made / kind, kind)
    recipe = write(made, "pretrain", kind)
    overrides = [f"pretrain.objective={objective}", "pretrain.steps=1", "pretrain.warmup=0",
                 "pretrain.learning_rate=1e-9", "pretrain.precision=float32"]  # fmt: skip
    danlu.run(recipe, made / "run", overrides, quiet=False)
    assert f"the head ({objective}) is the checkpoint's" in capsys.readouterr().err
    trained = load_file(made / "run" / "model" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)
    rows = {(r["model"], r["metric"]): r for r in read_json(made / "run" / "metrics.json")}
    assert np.isfinite(rows["small", "loss"]["value"])


def test_a_head_that_is_not_there_is_made_and_said(made, capsys):
    tensors = load_file(made / "bert" / "model.safetensors")
    bare = {k: t for k, t in tensors.items() if k.startswith("bert.")}
    save_file(bare | {"classifier.weight": torch.ones(2, 32)}, made / "bert" / "model.safetensors")
    overrides = ["pretrain.objective=masked", "pretrain.steps=1"]
    danlu.run(write(made, "pretrain"), made / "run", overrides, quiet=False)
    said = capsys.readouterr().err
    assert "left behind: classifier" in said
    assert "the head (masked) is new, and knows nothing yet" in said


def test_pre_training_and_then_fine_tuning_follow_each_other(made):
    overrides = ["pretrain.objective=masked", "pretrain.steps=2", "finetune.steps=2"]
    result = danlu.run(write(made), made / "run", overrides)
    assert result.built[3:5] == ["pretrain", "finetune"]


def refuse(made, words, recipe=None, overrides=(), error=InputError):
    with pytest.raises(error, match=words) as caught:
        danlu.run(recipe or write(made), made / "run", list(overrides))
    assert caught.value.exit_code == 2
    assert not (made / "run").exists()


def test_what_the_checkpoint_cannot_learn_is_refused_before_anything_is_read(made):
    (made / "rows.jsonl").unlink()  # so that the data would be an error too
    (made / "rows.jsonl").write_text('{"text": "a", "label": "b"}')
    refuse(
        made,
        "for 40 positions, tokenizer.max_length is 256",
        overrides=["tokenizer.max_length=256"],
    )
    refuse(made, "the checkpoint is an encoder", write(made, "pretrain"),
           ["pretrain.objective=causal"])  # fmt: skip
    checkpoint(made / "llama", "llama")
    refuse(made, "the checkpoint is a decoder", write(made, "pretrain", "llama"),
           ["pretrain.objective=masked"])  # fmt: skip
    refuse(made, "no token that stands where another is hidden", write(made, start="llama"),
           ["finetune.mask_probability=0.1"])  # fmt: skip


def test_a_hostile_checkpoint_is_refused_and_leaves_nothing(made):
    kept = shutil.copytree(made / "bert", made / "kept")

    def anew():
        shutil.rmtree(made / "bert")
        return shutil.copytree(kept, made / "bert")

    roles = json.loads((kept / "tokenizer_config.json").read_text())
    (anew() / "tokenizer_config.json").write_text(json.dumps(roles | {"auto_map": {"A": "b.C"}}))
    refuse(made, "tokenizer_config.json has an auto_map")
    save_tokenizer(anew(), "llama")
    refuse(made, "tokenizer.json has 300 tokens and the model's embedding")
    (anew() / "tokenizer.json").unlink()
    refuse(made, "the checkpoint has no tokenizer.json")
    (anew() / "model.safetensors").write_bytes(b"\x80\x04\x95")
    refuse(made, "model.safetensors is damaged")
    (anew() / "model.safetensors").rename(made / "bert" / "pytorch_model.bin")
    refuse(made, "the weights are a pickle, pytorch_model.bin")
    refuse(made, "there is no such folder", write(made, start="nowhere"))
    refuse(
        made, "'no-such-package' is not installed", write(made, start="package:no-such-package/x")
    )
    anew()


def test_keys_that_the_checkpoint_has_settled_are_errors_and_all_are_named(made):
    more = "[tokenizer]\nvocab_size = 500\nmax_length = 24"
    with pytest.raises(RecipeError) as caught:
        danlu.run(write(made, more=more), made / "run", ["model.depth=2", "model.qk_norm=true"])
    assert {path for path, _ in caught.value.problems} == {
        "model.depth", "model.qk_norm", "tokenizer.vocab_size",
    }  # fmt: skip


def test_the_filled_recipe_of_a_run_can_be_run_again(made):
    overrides = ["finetune.steps=2"]
    danlu.run(write(made), made / "run", overrides)
    again = danlu.run(made / "run" / "recipe.toml", made / "run")
    assert again.built == []


def test_an_image_model_is_no_beginning_for_texts(made):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                    intermediate_size=32, image_size=8, patch_size=4)  # fmt: skip
    transformers.ViTModel(config).save_pretrained(made / "vit")
    refuse(made, "a checkpoint of vit reads no texts", write(made, start="vit"))


def test_another_checkpoint_is_another_run(made):
    overrides = ["finetune.steps=1"]
    danlu.run(write(made), made / "run", overrides)
    Path(made / "bert" / "README.md").write_text("not read")
    assert danlu.run(write(made), made / "run", overrides).built == []
    tensors = load_file(made / "bert" / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.bias"] += 1
    save_file(tensors, made / "bert" / "model.safetensors")
    built = danlu.run(write(made), made / "run", overrides).built
    assert built[:2] == ["start", "tokenizer"]
    assert "finetune" in built
    assert "data" not in built
