"""Open models against the library that they come from: the same numbers, and the same files."""

import pytest
import torch
from safetensors.torch import load_file

from danlu.batch import PADDING
from danlu.data.image import patches
from danlu.model import heads, hf
from danlu.model.backbone import Backbone, BackboneConfig
from tolerances import COMPOSED

pytest.importorskip("transformers")
from open_models import CASES, OF_TEXTS, VOCAB, again, make

LENGTH = 30  # longer than the windows and the original positions of the cases


def save(model, folder, shard="5GB"):
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def built(checkpoint):
    """danlu's model with the checkpoint's weights."""
    if checkpoint.head:
        model = heads.build(checkpoint.config, checkpoint.head)
        model.load_state_dict(checkpoint.weights)
        return model.eval()
    backbone = Backbone(checkpoint.config)
    own = {k.removeprefix("backbone."): v for k, v in checkpoint.weights.items()}
    backbone.load_state_dict(own)
    return backbone.eval()


def computed(model, ids):
    """Hidden vectors, and logits if there is a head, of documents packed into one row."""
    backbone = getattr(model, "backbone", model)
    lengths = [len(row) for row in ids]
    position = torch.cat([torch.arange(n) for n in lengths])[None]
    document = torch.cat([torch.full((n,), k) for k, n in enumerate(lengths)])[None]
    with torch.no_grad():
        hidden = backbone(torch.cat(list(ids))[None], position, document)
        if not hasattr(model, "head"):
            return hidden[0], None
        scores = model.head(hidden, torch.ones(hidden.shape[:2]), backbone.embedding.weight)
        return hidden[0], scores.logits()


def expected(reference, ids):
    """The same by the reference library, each document by itself."""
    hidden, logits = [], []
    for row in ids:
        with torch.no_grad():
            out = reference(row[None], output_hidden_states=True)
        hidden.append(out.hidden_states[-1][0])
        said = getattr(out, "logits", getattr(out, "prediction_logits", None))
        logits.append(None if said is None or said.ndim < 3 else said[0])
    return torch.cat(hidden), None if logits[0] is None else torch.cat(logits)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=COMPOSED, atol=COMPOSED)


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, VOCAB, (n,), generator=generator) for n in (LENGTH, 7, 19)]


@pytest.mark.parametrize("name", OF_TEXTS)
def test_hidden_vectors_and_logits_are_those_of_the_reference(name, ids, tmp_path):
    reference = make(name)
    checkpoint = hf.read(save(reference, tmp_path))
    hidden, logits = computed(built(checkpoint), ids)
    wanted_hidden, wanted_logits = expected(reference, ids)
    close(hidden, wanted_hidden)
    assert wanted_hidden.abs().max() > 0.5
    if checkpoint.head:
        assert wanted_logits.std() > 0.1
        close(logits, wanted_logits)
    kind = CASES[name][1]
    assert checkpoint.head == {"ForMaskedLM": "masked", "ForPreTraining": "masked",
                               "ForCausalLM": "causal"}.get(kind)  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if n not in OF_TEXTS])
def test_an_image_has_the_hidden_vectors_of_the_reference(name, tmp_path):
    reference = make(name)
    checkpoint = hf.read(save(reference, tmp_path))
    settings = reference.config
    torch.manual_seed(2)
    size, channels = settings.image_size, settings.num_channels
    pixels = torch.randn(2, channels, size, size)
    cut = patches(pixels.movedim(1, -1).numpy(), (settings.patch_size,) * 2)
    number, length = cut.shape[1], cut.shape[1] + 1
    ids = torch.tensor([0] + [1] * number).repeat(2)[None]
    slots = (ids[0] == 1).nonzero().squeeze(1)
    with torch.no_grad():
        hidden = built(checkpoint)(
            ids,
            torch.arange(length).repeat(2)[None],
            torch.arange(2).repeat_interleave(length)[None],
            torch.from_numpy(cut).flatten(0, 1),
            slots,
        )
        bare = getattr(reference, "vit", reference)
        wanted = bare(pixels).last_hidden_state
    close(hidden.view_as(wanted), wanted)


@pytest.mark.parametrize("name", CASES)
def test_what_was_read_is_written_as_it_was_to_the_bit(name, tmp_path):
    reference = make(name)
    save(reference, tmp_path / "theirs")
    hf.write(tmp_path / "ours", hf.read(tmp_path / "theirs"))
    wanted = load_file(tmp_path / "theirs" / "model.safetensors")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
        assert found[key].dtype == tensor.dtype
    loaded = again(tmp_path / "ours", name)
    for key, tensor in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["llama", "bert", "modernbert"])
def test_half_precision_comes_out_as_it_went_in(name, tmp_path):
    reference = make(name).to(torch.bfloat16)
    save(reference, tmp_path / "theirs")
    checkpoint = hf.read(tmp_path / "theirs")
    assert {t.dtype for t in checkpoint.weights.values()} == {torch.float32}
    hf.write(tmp_path / "ours", checkpoint)
    wanted = load_file(tmp_path / "theirs" / "model.safetensors")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_shards_are_read_and_written(name, ids, tmp_path):
    reference = make(name)
    save(reference, tmp_path / "theirs", "20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    checkpoint = hf.read(tmp_path / "theirs")
    hf.write(tmp_path / "ours", checkpoint, shard=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    loaded = again(tmp_path / "ours", name)
    for key, tensor in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_survives_the_familys_own_words(name, tmp_path):
    checkpoint = hf.read(save(make(name), tmp_path))
    family = hf.FAMILIES[checkpoint.family]
    again_ = family.config(hf.Settings(family.settings(checkpoint.config), "here"))
    assert again_ == checkpoint.config
    assert BackboneConfig(**checkpoint.config.to_dict()) == checkpoint.config


OWN = {
    "llama": {"causal": True},
    "qwen3": {"causal": True, "qk_norm": True, "tie_embeddings": False},
}


@pytest.mark.parametrize("family", OWN)
def test_a_model_of_ones_own_is_a_model_of_an_open_family(family, ids, tmp_path):
    import transformers

    torch.manual_seed(4)
    config = BackboneConfig(
        vocab_size=VOCAB, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, head_dim=16,
        hidden_dim=48, **OWN[family],
    )  # fmt: skip
    model = heads.build(config, "causal")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hf.write(tmp_path, hf.of_model(model, 64))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert reference.config.model_type == family
    assert reference.config.max_position_embeddings == 64
    _, logits = computed(model.eval(), ids)
    close(logits, expected(reference.eval(), ids)[1])


def test_a_model_that_no_family_computes_is_refused_with_the_families():
    model = heads.build(
        BackboneConfig(
            vocab_size=9, num_layers=1, dim=8, num_heads=1, num_kv_heads=1, head_dim=8, hidden_dim=8
        ),
        "masked",
    )
    with pytest.raises(Exception, match=r"no family .* llama \(Llama 2 and 3, SmolLM\)"):
        hf.of_model(model)


@pytest.mark.parametrize("name", ["modernbert", "mistral", "llama dynamic", "roberta"])
def test_gradients_are_those_of_the_reference(name, ids, tmp_path):
    reference = make(name)
    checkpoint = hf.read(save(reference, tmp_path))
    model = built(checkpoint)
    row = ids[0]
    ones = torch.zeros(1, LENGTH, dtype=torch.int64)
    torch.manual_seed(5)
    direction = torch.randn(1, LENGTH, 32)
    hidden = model.backbone(row[None], torch.arange(LENGTH)[None], ones)
    (hidden * direction).sum().backward()
    bare = getattr(reference, reference.base_model_prefix)
    (bare(row[None]).last_hidden_state * direction).sum().backward()
    given = {k: p.grad for k, p in reference.named_parameters() if p.grad is not None}
    parts = hf._parts(hf.FAMILIES[checkpoint.family], checkpoint.config, checkpoint.head,
                      checkpoint.prefix)  # fmt: skip
    own = {k: p.grad for k, p in model.named_parameters()}
    compared, largest = 0, max(float(gradient.abs().max()) for gradient in given.values())
    for theirs, names in parts.items():
        if not theirs.startswith("model.") and not theirs.startswith(checkpoint.prefix):
            continue
        wanted, found = given[theirs], torch.cat([own[n] for n in names])
        if theirs.endswith("token_type_embeddings.weight") or "position_emb" in theirs:
            wanted, found = wanted[:1], found[:1]
        # A key's bias has no gradient but for rounding, so each is measured by the largest of all.
        assert (found - wanted).abs().max() < COMPOSED * largest, theirs
        compared += 1
    assert compared > 10


def test_a_window_changes_what_is_seen_only_where_documents_are_longer(ids, tmp_path):
    checkpoint = hf.read(save(make("mistral"), tmp_path))
    assert checkpoint.config.window == 5
    backbone = built(checkpoint).backbone
    assert backbone.without_kernels(6) == []
    assert backbone.without_kernels(7) == ["attention within 5 positions"]


@pytest.mark.parametrize("name", ["modernbert", "mistral", "llama"])
def test_attention_is_counted_between_the_pairs_that_see_each_other(name, tmp_path):
    backbone = built(hf.read(save(make(name), tmp_path))).backbone
    config, lengths = backbone.config, (1, 3, LENGTH, 6)
    document = torch.cat([torch.full((n,), k) for k, n in enumerate(lengths)])[None]
    pairs = 0
    for layer in range(config.num_layers):
        window = config.window if layer in config.local_layers else LENGTH
        for n in lengths:
            apart = torch.arange(n)[:, None] - torch.arange(n)
            seen = (apart.abs() <= window) & ((apart >= 0) | (not config.causal))
            pairs += int(seen.sum())
    matrices = sum(p.numel() for p in backbone.layers.parameters() if p.ndim == 2)
    wanted = matrices * sum(lengths) + 2 * pairs * config.num_heads * config.head_dim
    assert backbone.multiply_adds(document) == wanted


@pytest.mark.parametrize("name", ["roberta", "modernbert", "llama dynamic"])
def test_computing_layers_again_changes_no_bit_of_a_gradient(name, ids, tmp_path):
    backbone = built(hf.read(save(make(name), tmp_path))).backbone
    position, document = torch.arange(LENGTH)[None], torch.zeros(1, LENGTH, dtype=torch.int64)
    found = []
    for backbone.checkpoint in (False, True):
        out = backbone(ids[0][None], position, document)
        out.sum().backward()
        found.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
        backbone.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_padding_changes_nothing(ids, tmp_path):
    for name in ("roberta", "modernbert", "mistral", "llama dynamic"):
        backbone = built(hf.read(save(make(name), tmp_path / name))).backbone
        row = torch.cat((ids[0], torch.zeros(9, dtype=torch.int64)))[None]
        position = torch.cat((torch.arange(LENGTH), torch.zeros(9, dtype=torch.int64)))[None]
        document = torch.cat((torch.zeros(LENGTH), torch.full((9,), PADDING))).long()[None]
        with torch.no_grad():
            padded = backbone(row, position, document)[0, :LENGTH]
        close(padded, computed(backbone, ids[:1])[0])
