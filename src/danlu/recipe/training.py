"""The sections of a recipe that say how a model learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from danlu.recipe.base import Count, Fraction, Positive, Section


class Training(Section):
    """What both training stages have in common."""

    epochs: Positive = 1
    """Passes over the training split, at most."""
    steps: Count = 0
    """Steps of the optimiser, at most, in place of `epochs`; 0 counts epochs."""
    layer_dropout: Fraction = 0.0
    """On embeddings and residual branches."""
    accumulate: Positive | None = None
    """Parts that a batch is computed in, to save memory. Loss and gradient are those of the
    whole batch; what is hidden of a text is drawn for each part by itself, and a batch norm
    takes the mean and deviation of each part."""
    recompute: bool = False
    """Keep only what passes between layers, and compute the rest again for the gradient:
    less memory, a third more work (activation checkpointing)."""
    memory_limit: Annotated[float, Field(ge=0)] = 0.0
    """Most memory that training may hold (GB; the process's on a CPU, the device's on a GPU);
    past it training stops with what to change. 0 sets no limit."""
    optimizer: Literal["adam", "adamw", "muon", "sgd"] = "muon"
    """`muon` is for the matrices of the layers; AdamW takes the rest."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """For SGD."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """For Adam and AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """On matrices only. Decoupled; for `adam` it is added to the gradient (L2)."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sum of the matrices' absolute values (L1). After each step they move towards
    zero by the learning rate times this, and stop there."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up."""
    warmup: Fraction = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 clips nothing."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` takes bfloat16 where the processor computes in it."""
    average: Fraction = 0.0
    """Decay of the moving average of the weights that is validated and kept; 0 keeps the last."""
    patience: Count = 0
    """Stop after so many evaluations without a better one; 0 never stops early."""
    checkpoint_every: Count = 0
    """Steps between checkpoints; 0 makes one at each epoch's end."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Also save, without an evaluation, when so many minutes went by without a checkpoint; 0
    leaves it at `checkpoint_every`."""
    keep_checkpoints: Positive = 2
    """Last checkpoints kept, beside the best weights, during training and with what it made."""
    on_spike: Literal["skip", "rewind", "keep"] = "skip"
    """What becomes of a batch whose loss is far above those before it: it is skipped; or training
    goes back to the last checkpoint and passes over all batches since; or it is learnt from. One
    whose loss or gradient is not finite is always skipped."""
    spike_threshold: Annotated[float, Field(gt=0)] = 10.0
    """How far above the median of the last losses is too far: in robust standard deviations of
    their logarithms (of at least 0.1, so that 10 are a factor of 2.7 at least)."""
    max_skipped: Positive = 5
    """Steps skipped, or rewinds to one checkpoint, after which training stops with advice."""
    log_every: Positive = 20
    """Steps between rows in the log."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the extra `tensorboard`)."""


class Pretrain(Training):
    """Self-supervised learning from the text alone."""

    objective: Literal["masked", "causal", "none"] = "masked"
    """Fill in masked tokens, foretell the next one, or skip this stage."""
    batch_tokens: Positive | None = None
    """Tokens in one step of the optimiser: full rows of `tokenizer.max_length`."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of tokens to fill in: 80% masked, 10% replaced, 10% left (BERT)."""


class Finetune(Training):
    """Supervised learning from the labels."""

    batch_size: Positive | None = None
    """Documents in one step of the optimiser."""
    average: Fraction = 0.99
    """Decay of the moving average of the weights that is validated and kept; 0 keeps the last."""
    dropout: Fraction = 0.3
    """Before the output layer."""
    consistency: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the agreement between two views of each text with other tokens hidden (R-Drop);
    0 looks at each text once."""
    choose_by: Literal["accuracy", "loss", "ndcg"] | None = None
    """What the best checkpoint is best at on the validation split: `accuracy` where a row has one
    class, `ndcg` (of the first `events.k`) for task `rank`, or the `loss`."""
    mask_probability: Fraction = 0.0
    """Share of input tokens hidden at random, against overfitting."""
    loss: (
        Literal["cross_entropy", "hinge", "squared", "absolute", "huber", "quantile", "ctc"] | None
    ) = None
    """What is made small: `cross_entropy` or `hinge` for classes; `squared`, `absolute` or
    `huber` errors of standardised values for tasks `regress` and `detect`; `quantile` (pinball)
    for tasks `regress` and `forecast`; `ctc` (connectionist temporal classification) for task
    `transcribe`."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """The quantiles to foretell for task `regress`, rising, with the median 0.5 among them, which
    is then the answer's value. (0.1, 0.5, 0.9) for `loss = "quantile"`, otherwise none."""
    trim: Fraction = 0.0
    """For task `detect`: share of a batch's windows, those that are rebuilt worst, from which
    nothing is learnt: they may be what is looked for."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """For images and sounds: every example is blended with another of its batch, and its label
    alike, by a share that is drawn from Beta(mixup, mixup); 0 blends nothing."""
