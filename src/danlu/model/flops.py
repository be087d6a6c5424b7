"""How many floating-point operations training needs, counted from the shapes."""

from __future__ import annotations

from danlu.batch import Batch
from danlu.model.heads import DocumentHead, FillingHead, Model, TokenHead
from danlu.model.outlook import ForecastHead, RebuildHead
from danlu.model.transcript import TranscriptHead

_MULTIPLY_ADD, _PASSES = 2, 3  # a product forward, and one for each of its factors backward


def useful(model: Model, batch: Batch) -> int:
    """Return the operations that a training step on `batch` cannot do without.

    Counted are matrix products: of the layers at every token, of attention between the
    pairs that may see each other (half of them if causal), of the output layer at the
    positions that bear loss. Padding, recomputation and everything that is not a matrix
    product count as nothing, so the figure is on the low side.

    Examples
    --------
    >>> import torch
    >>> from danlu.model.backbone import BackboneConfig
    >>> from danlu.model.heads import build
    >>> config = BackboneConfig(vocab_size=32, num_layers=1, dim=16, num_heads=1,
    ...                         num_kv_heads=1, head_dim=16, hidden_dim=16)
    >>> ids = torch.zeros(1, 4, dtype=torch.long)
    >>> batch = Batch(ids, ids, ids, 1, weight_BT=torch.tensor([[1.0, 0, 0, 0]]))
    >>> attention, layers, output = 2 * 4 * 4 * 16, 4 * 7 * 16 * 16, 16 * 16 + 16 * 32
    >>> useful(build(config, "masked"), batch) == 6 * (attention + layers + output)
    True
    """
    backbone, head = model.backbone.multiply_adds(batch.document_BT), model.head
    if model.backbone.values is not None and batch.values_UK is not None:
        assert batch.slots_U is not None
        ids_U = batch.ids_BT.reshape(-1)[batch.slots_U]
        backbone += model.backbone.values.multiply_adds(ids_U)
    if isinstance(head, DocumentHead):
        own = head.score.weight.numel() * batch.num_tokens
        own += head.output.weight.numel() * batch.num_documents
    elif isinstance(head, ForecastHead):
        own = head.output.weight.numel() * head.ahead * batch.num_documents
    elif isinstance(head, RebuildHead | TranscriptHead):
        own = sum(p.numel() for p in head.parameters() if p.ndim == 2) * batch.num_tokens
    elif isinstance(head, FillingHead):
        assert batch.target_BT is not None
        assert batch.hidden_slots_U is not None
        own = _of_tokens(model, head.tokens, batch)
        own += head.values.multiply_adds(batch.target_BT.reshape(-1)[batch.hidden_slots_U])
    else:
        own = _of_tokens(model, head, batch)
    return _MULTIPLY_ADD * _PASSES * (backbone + own)


def _of_tokens(model: Model, head: TokenHead, batch: Batch) -> int:
    """Return the multiply-adds of scores over the vocabulary."""
    each = sum(p.numel() for p in head.parameters() if p.ndim == 2)
    if head.weight is None:
        each += model.backbone.embedding.weight.numel()
    assert batch.weight_BT is not None
    return each * int((batch.weight_BT != 0).sum())
