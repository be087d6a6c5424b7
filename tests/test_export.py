"""Released models as checkpoints of open families, read by the library that they are for."""

import pytest
import torch
from safetensors.torch import load_file

import danlu
from checkpoints import TEXTS
from danlu.artifact import read_json
from danlu.errors import InputError
from danlu.export import export, line
from danlu.model import heads, hf
from test_start import load_tokenizer, made, write
from tolerances import COMPOSED

transformers = pytest.importorskip("transformers")
assert made  # a fixture


def test_a_causal_model_of_ones_own_gives_the_same_logits_for_a_text(made):
    (made / "own.toml").write_text("""
[data]
task = "pretrain"
sources = [{ path = "rows.jsonl" }]
[data.clean]
near_duplicates = "keep"
[data.split]
by = "random"
[tokenizer]
vocab_size = 300
max_length = 32
[model]
depth = 2
width = 32
head_dim = 16
[pretrain]
objective = "causal"
steps = 4
learning_rate = 0.05
[evaluate]
bootstrap = 100
""")
    danlu.run(made / "own.toml", made / "run")
    found = export(made / "run", made / "out")
    assert (found["family"], found["left_behind"]) == ("llama", None)
    assert line(found) == f"{made / 'out'}: LlamaForCausalLM"
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "out", local_files_only=True)
    auto = transformers.AutoModelForCausalLM
    reference = auto.from_pretrained(made / "out", local_files_only=True)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 2
    config = read_json(made / "run" / "model" / "config.json")
    model = heads.build(heads.read_config(config["backbone"]), "causal").eval()
    model.load_state_dict(load_file(made / "run" / "model" / "model.safetensors"))
    with torch.no_grad():
        hidden = model.backbone(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))
        logits = hidden @ model.backbone.embedding.weight.T
        torch.testing.assert_close(reference(ids).logits, logits, rtol=COMPOSED, atol=COMPOSED)


def test_a_fine_tuned_checkpoint_is_exported_without_danlus_head(made):
    danlu.run(write(made), made / "run", ["finetune.steps=3", "finetune.learning_rate=0.01"])
    found = export(made / "run", made / "out")
    assert found["architecture"] == "BertModel"
    assert "the head (classify) has no counterpart there" in line(found)
    before, after = hf.read(made / "bert").weights, hf.read(made / "out").weights
    name = "backbone.layers.0.attention_norm.weight"
    assert not torch.equal(before[name], after[name])  # it has learnt
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "out", local_files_only=True)
    wanted = load_tokenizer(made / "bert").encode(TEXTS[0]).ids
    assert tokenizer(TEXTS[0])["input_ids"] == wanted
    with pytest.raises(InputError, match="something is there already"):
        export(made / "run", made / "out")
    again = made / "again.toml"
    again.write_text(write(made, start="out").read_text())
    assert danlu.run(again, made / "second", ["finetune.steps=1"]).built[0] == "start"


def test_what_cannot_be_exported_says_why(made):
    with pytest.raises(InputError, match="there is no released model here"):
        export(made / "nowhere", made / "out")
    assert not (made / "out").exists()
