"""A trained model, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from danlu.artifact import read_json
from danlu.data.clean import scrub
from danlu.data.load import in_order
from danlu.data.text import Documents, Encoder
from danlu.errors import ArtifactError, DanluError, InputError
from danlu.evaluate.predict import outputs, probabilities
from danlu.model import heads, native


class Engine:
    """Weights, tokenizer and the cleaning that training used.

    Parameters
    ----------
    model : Model
        On `device`.
    encoder : Encoder
    config : dict
        The model folder's ``config.json``.
    device : torch.device
    """

    def __init__(
        self, model: heads.Model, encoder: Encoder, config: dict[str, Any], device: torch.device
    ) -> None:
        self.model, self.encoder, self.config, self.device = model, encoder, config, device
        self.classes: list[str] = config["classes"]
        self.kind: str = config["head"]

    @classmethod
    def load(
        cls, folder: Path, tokenizer: Path | None = None, device: torch.device | None = None
    ) -> Engine:
        """Read a model folder.

        Raises
        ------
        InputError
            If there is none, or it does not answer about documents.
        ArtifactError
            If its files do not belong together.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not (folder / "config.json").is_file():
            raise InputError(
                "there is no released model here",
                where=str(folder),
                mend="run the recipe; if its gate failed, the report says why",
            )
        try:
            config = read_json(folder / "config.json")
            if config["head"] in ("masked", "causal"):
                raise InputError(
                    "this model was only pre-trained; it has no labels to answer with",
                    where=str(folder),
                    mend='give the recipe labels and task = "classify" or "regress"',
                )
            backbone = heads.read_config(config["backbone"])
            model = heads.build(backbone, config["head"], num_outputs=len(config["classes"]) or 1)
            model.load_state_dict(load_file(folder / "model.safetensors"))
            path = tokenizer or folder / "tokenizer.json"
            if not path.is_file():
                raise FileNotFoundError(f"there is no {path.name}")
            encoder = Encoder.load(path, config["max_length"], backbone.causal)
        except DanluError:
            raise
        except Exception as error:  # the tokenizers library raises nothing narrower
            told = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"the model's files are damaged or do not fit together: {told}",
                where=str(folder),
                mend="delete the folder and run the recipe again",
            ) from None
        if encoder.tokenizer.get_vocab_size() > backbone.vocab_size:
            raise ArtifactError(
                f"the tokenizer has {encoder.tokenizer.get_vocab_size()} tokens, the model knows "
                f"{backbone.vocab_size}: they do not fit together",
                where=str(folder),
            )
        native.library()  # built now, if need be, and not while the first question waits
        return cls(model.to(device).eval(), encoder, config, device)

    @property
    def name(self) -> str:
        """The released model's name."""
        return str(self.config.get("name", "model"))

    def scrub(self, text: str) -> str:
        """Clean and redact a text as training did; empty if nothing of it remains."""
        return scrub(text, self.config["unicode"], self.config["redact"])[0]

    def _encode(self, texts: Sequence[str]) -> tuple[Documents, NDArray[np.int64]]:
        documents, lengths = self.encoder([self.scrub(text) for text in texts])
        return Documents.of(documents), lengths

    def _answers(self, documents: Documents, batch_size: int) -> NDArray[np.float64]:
        raw = outputs(self.model, in_order(documents, batch_size), len(documents), self.device)
        if self.kind == "regress":
            scale = self.config["scale"]
            return np.asarray(raw[:, 0] * scale["std"] + scale["mean"])
        return probabilities(raw, self.kind)

    def answers(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float64]:
        """Return probabilities of shape (n, C), or values of shape (n,)."""
        if not texts:
            return np.empty((0,) if self.kind == "regress" else (0, len(self.classes)))
        return self._answers(self._encode(texts)[0], batch_size)

    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[dict[str, Any]]:
        """Answer about each text.

        Returns
        -------
        list of dict
            ``label`` and ``probability`` (or ``labels``, or ``value``), all
            ``probabilities``, the number of ``tokens`` and whether the text was
            ``truncated`` to what the model sees.
        """
        if not texts:
            return []
        documents, lengths = self._encode(texts)
        answers = self._answers(documents, batch_size)
        return [
            {
                **self._say(answer),
                "tokens": int(length),
                "truncated": bool(length > self.encoder.max_length),
            }
            for answer, length in zip(answers, lengths, strict=True)
        ]

    def _say(self, answer: Any) -> dict[str, Any]:
        if self.kind == "regress":
            return {"value": float(answer)}
        each = {name: float(p) for name, p in zip(self.classes, answer, strict=True)}
        if self.kind == "multilabel":
            return {"labels": [name for name, p in each.items() if p >= 0.5], "probabilities": each}
        best = max(each, key=each.__getitem__)
        return {"label": best, "probability": each[best], "probabilities": each}
