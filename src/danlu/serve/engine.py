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
from danlu.data.table_kind import RecordReader
from danlu.data.transcripts import spell
from danlu.errors import ArtifactError, DanluError, InputError
from danlu.evaluate.predict import outputs, probabilities, quantiles
from danlu.evaluate.transcribe import heard
from danlu.model import heads, native
from danlu.serve import events, series


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
        self.quantiles: list[float] = config.get("quantiles", [])

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
            num_outputs = len(config["classes"]) or len(config.get("quantiles", [])) or 1
            model = heads.build(backbone, config["head"], num_outputs, shape=config.get("shape"))
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

    @property
    def images(self) -> tuple[str, ...]:
        """The columns of a row that hold images."""
        return self.reader.images if isinstance(self.reader, RecordReader) else ()

    def _read(self, records: Sequence[Any]) -> tuple[Documents, list[dict[str, Any]]]:
        return self.reader.read([self.reader.clean(record) for record in records])

    def _answers(
        self, documents: Documents, batch_size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the answers, and of which rows quantiles had to be put in order."""
        raw = outputs(self.model, in_order(documents, batch_size), len(documents), self.device)
        in_order_already = np.zeros(len(raw), bool)
        if self.kind != "regress":
            return probabilities(raw, self.kind), in_order_already
        values = raw * self.config["scale"]["std"] + self.config["scale"]["mean"]
        return quantiles(values) if self.quantiles else (values[:, 0], in_order_already)

    def answers(self, records: Sequence[Any], batch_size: int = 64) -> NDArray[np.float64]:
        """Return probabilities of shape (n, C), quantiles of (n, Q), or values of (n,)."""
        return self.answers_and_crossings(records, batch_size)[0]

    def answers_and_crossings(
        self, records: Sequence[Any], batch_size: int = 64
    ) -> tuple[NDArray[np.float64], int]:
        """Return the answers, and how many rows' quantiles had to be put in order."""
        if not records:
            width = len(self.classes) or len(self.quantiles)
            return np.empty((0, width) if width else (0,)), 0
        answers, crossed = self._answers(self._read(records)[0], batch_size)
        return answers, int(crossed.sum())

    def transcripts(self, records: Sequence[Any], batch_size: int = 64) -> list[str]:
        """Return what is said in each clip."""
        if not records:
            return []
        documents, _ = self._read(records)
        batches = in_order(documents, batch_size)
        labels = heard(self.model, batches, len(documents), self.device)
        return [spell(one, self.classes) for one in labels]

    def predict(self, records: Sequence[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Answer about each record: a text, a file's bytes, or a table's row as a dict.

        Returns
        -------
        list of dict
            ``label`` and ``probability`` (or ``labels``), and all ``probabilities``; or
            ``value``, and where they were learnt ``quantiles`` by level, of which the value is
            the median, and whether they ``crossed`` and were put in order. Also what the
            reader noted: of a text the number of ``tokens`` and whether it was ``truncated``
            to what the model sees; of a row how many cells are ``missing``, ``unreadable``,
            ``unknown`` or ``clipped``, and whether a text of it was ``truncated``. Of a clip that
            is to be transcribed the ``text``. Of series see :func:`danlu.serve.series.predict`,
            of histories of items :func:`danlu.serve.events.predict`.
        """
        if not records:
            return []
        if self.modality == "series":
            return series.predict(self, records, batch_size)
        if self.modality == "events":
            return events.predict(self, records, batch_size)
        if self.kind == "transcribe":
            return [{"text": text} for text in self.transcripts(records, batch_size)]
        documents, notes = self._read(records)
        answers, crossed = self._answers(documents, batch_size)
        return [
            {**self._say(answer, bool(cross)), **note}
            for answer, cross, note in zip(answers, crossed, notes, strict=True)
        ]

    def _say(self, answer: Any, crossed: bool) -> dict[str, Any]:
        if self.quantiles:
            each = {f"{q:g}": float(v) for q, v in zip(self.quantiles, answer, strict=True)}
            return {"value": each["0.5"], "quantiles": each, "crossed": crossed}
        if self.kind == "regress":
            return {"value": float(answer)}
        each = {name: float(p) for name, p in zip(self.classes, answer, strict=True)}
        if self.kind == "multilabel":
            return {"labels": [name for name, p in each.items() if p >= 0.5], "probabilities": each}
        best = max(each, key=each.__getitem__)
        return {"label": best, "probability": each[best], "probabilities": each}
