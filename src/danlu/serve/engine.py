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
from danlu.data import kinds
from danlu.data.kinds import Reader
from danlu.data.load import in_order
from danlu.data.modality import Documents
from danlu.errors import ArtifactError, DanluError, InputError
from danlu.evaluate.predict import outputs, probabilities
from danlu.model import heads, native


class Engine:
    """Weights, and a reader that cleans and encodes as training did.

    Parameters
    ----------
    model : Model
        On `device`.
    reader : Reader
    config : dict
        The model folder's ``config.json``.
    device : torch.device
    """

    def __init__(
        self, model: heads.Model, reader: Reader, config: dict[str, Any], device: torch.device
    ) -> None:
        self.model, self.reader, self.config, self.device = model, reader, config, device
        self.classes: list[str] = config["classes"]
        self.kind: str = config["head"]

    @classmethod
    def load(
        cls, folder: Path, encoder: Path | None = None, device: torch.device | None = None
    ) -> Engine:
        """Read a model folder; the encoder's (of texts: tokenizer's) may be another.

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
            reader = kinds.of(config["modality"]).reader(encoder or folder, config)
        except DanluError:
            raise
        except Exception as error:  # the tokenizers library raises nothing narrower
            told = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"the model's files are damaged or do not fit together: {told}",
                where=str(folder),
                mend="delete the folder and run the recipe again",
            ) from None
        spec = reader.spec
        if spec.vocab_size > backbone.vocab_size or spec.value_dims != backbone.value_dims:
            raise ArtifactError(
                f"the encoder has {spec.vocab_size} tokens and values of {spec.value_dims}, the "
                f"model knows {backbone.vocab_size} and {backbone.value_dims}: they do not fit "
                "together",
                where=str(folder),
            )
        native.library()  # built now, if need be, and not while the first question waits
        return cls(model.to(device).eval(), reader, config, device)

    @property
    def name(self) -> str:
        """The released model's name."""
        return str(self.config.get("name", "model"))

    @property
    def modality(self) -> str:
        """The kind of data that it is asked about."""
        return str(self.config["modality"])

    def _read(self, records: Sequence[Any]) -> tuple[Documents, list[dict[str, Any]]]:
        return self.reader.read([self.reader.clean(record) for record in records])

    def _answers(self, documents: Documents, batch_size: int) -> NDArray[np.float64]:
        raw = outputs(self.model, in_order(documents, batch_size), len(documents), self.device)
        if self.kind == "regress":
            scale = self.config["scale"]
            return np.asarray(raw[:, 0] * scale["std"] + scale["mean"])
        return probabilities(raw, self.kind)

    def answers(self, records: Sequence[Any], batch_size: int = 64) -> NDArray[np.float64]:
        """Return probabilities of shape (n, C), or values of shape (n,)."""
        if not records:
            return np.empty((0,) if self.kind == "regress" else (0, len(self.classes)))
        return self._answers(self._read(records)[0], batch_size)

    def predict(self, records: Sequence[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Answer about each record: a text, or a table's row as a dict.

        Returns
        -------
        list of dict
            ``label`` and ``probability`` (or ``labels``, or ``value``), all
            ``probabilities``, and what the reader noted: of a text the number of ``tokens``
            and whether it was ``truncated`` to what the model sees; of a row how many cells
            are ``missing``, ``unreadable``, ``unknown`` or ``clipped``.
        """
        if not records:
            return []
        documents, notes = self._read(records)
        answers = self._answers(documents, batch_size)
        return [{**self._say(answer), **note} for answer, note in zip(answers, notes, strict=True)]

    def _say(self, answer: Any) -> dict[str, Any]:
        if self.kind == "regress":
            return {"value": float(answer)}
        each = {name: float(p) for name, p in zip(self.classes, answer, strict=True)}
        if self.kind == "multilabel":
            return {"labels": [name for name, p in each.items() if p >= 0.5], "probabilities": each}
        best = max(each, key=each.__getitem__)
        return {"label": best, "probability": each[best], "probabilities": each}
