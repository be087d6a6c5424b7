"""Hugging Face Trainer, as its own examples use it.

``--flags default`` leaves TrainingArguments as they come (float32, eager);
``--flags best`` turns on everything that makes it faster on a processor.
Neither saves, logs nor reports while it is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import accelerate
import common
import documents
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

Examples = list[dict[str, Any]]


class CountedTrainer(Trainer):
    """Trainer that also remembers the loss and the size of its last batch."""

    last_loss: torch.Tensor
    last_tokens = 0
    padded_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        self.last_tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        self.padded_tokens += inputs["input_ids"].numel()
        self.last_loss = super().training_step(model, inputs, *args)
        return self.last_loss


class Watch(TrainerCallback):
    """Runs the clock, and an evaluation every so many steps."""

    def __init__(
        self, clock: common.Clock, evaluate: Callable[[], float] | None, every: int
    ) -> None:
        self.clock, self.evaluate, self.every = clock, evaluate, every
        self.trainer: CountedTrainer
        self.curve: list[tuple[int, float, float]] = []

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.clock.begin()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        self.clock.step(self.trainer.last_tokens, self.trainer.last_loss.detach())
        last = state.global_step == state.max_steps
        if self.evaluate and (state.global_step % self.every == 0 or last):
            seconds = self.clock.seconds
            with self.clock.pause():
                self.curve.append((state.global_step, seconds, self.evaluate()))


def arguments(options: Any, folder: str) -> dict[str, Any]:
    """Return the TrainingArguments of a task and a choice of flags."""
    found: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": options.shape["batch"],
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    total = options.warm_up + options.steps
    if options.steps:
        found["max_steps"] = total
    else:
        found["num_train_epochs"] = 1
    if options.task != "pretrain":
        # A number below 1 is a share of all steps.
        found["warmup_steps"] = options.schedule_warm_up
    if options.task == "quality":
        found |= {
            "lr_scheduler_type": "cosine",
            "weight_decay": common.WEIGHT_DECAY,
            "adam_beta1": common.BETAS[0],
            "adam_beta2": common.BETAS[1],
            "max_grad_norm": common.GRADIENT_CLIP,
        }
    # Fine-tuning keeps the Trainer's linear schedule, betas and no decay: with danlu's it was
    # worse by eight points (NOTEBOOK.md, 2026-11-25).
    if options.flags == "best":
        found |= {
            "bf16": True,
            "optim": "adamw_torch_fused",
            "logging_strategy": "no",
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": False,
        }
        if options.task == "finetune":
            found["train_sampling_strategy"] = "group_by_length"
    if options.compile:
        found |= {"torch_compile": True, "torch_compile_mode": options.compile_mode}
    return found


def language_model(options: Any) -> tuple[LlamaForCausalLM, Examples, Any, float]:
    """Return the model, its rows, how they are joined, and the work of a token."""
    shape = options.shape
    context = shape["context"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=context,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    # As run_clm.py does: documents laid end to end and cut into blocks; the model
    # shifts the labels itself. No mask is handed over, for nothing is padded.
    table = torch.from_numpy(documents.blocks(options.data, "train", context))
    rows = [{"input_ids": row, "labels": row} for row in table]
    work = common.flops_per_token(shape, attended=(context + 1) / 2)
    return LlamaForCausalLM(config), rows, default_data_collator, work


def classifier(options: Any) -> tuple[BertForSequenceClassification, Examples, Any, float]:
    """Return the same for reviews."""
    shape = options.shape
    config = BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        max_position_embeddings=shape["context"],
        num_labels=2,
        pad_token_id=0,
    )
    if options.flags == "best":
        # With dropout on the attention weights, torch's fast kernel is out of reach; drawing
        # the masks of the other takes a CPU long; danlu is given none either.
        config.attention_probs_dropout_prob = 0.0
        config.hidden_dropout_prob = 0.0
    rows = documents.rows(options.data, "train")
    labels = np.load(options.data / "train.labels.npy")
    examples = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row), "labels": int(label)}
        for row, label in zip(rows, labels, strict=True)
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(options.data / "tokenizer.json"), pad_token="<pad>"
    )
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=options.pad_to)
    sizes = np.array([len(row) for row in rows], np.float64)
    work = common.flops_per_token(
        {**shape, "gated": False}, float((sizes**2).sum() / sizes.sum()), head=False
    )
    return BertForSequenceClassification(config), examples, collate, work


def bits_per_byte(model: LlamaForCausalLM, options: Any) -> float:
    """Evaluate a copy of the model in float32, whatever it is trained in."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())

    @torch.no_grad()
    def nats(ids: np.ndarray, targets: np.ndarray) -> float:
        # Causal, padded on the right: no real token sees the padding.
        logits = copy(input_ids=torch.from_numpy(ids)).logits.flatten(0, 1)
        flat = torch.from_numpy(targets).flatten()
        return float(F.cross_entropy(logits, flat, reduction="sum"))

    return documents.bits_per_byte(options.data, nats)


@torch.no_grad()
def accuracy(model: BertForSequenceClassification, options: Any) -> float:
    """Return the share of the test split that is labelled rightly."""
    model.eval()
    rows = documents.rows(options.data, "test")
    labels = np.load(options.data / "test.labels.npy")
    right = 0
    for numbers, ids, sizes in documents.padded_batches(rows, tokens=8192):
        mask = torch.from_numpy((np.arange(ids.shape[1]) < sizes[:, None]).astype(np.int64))
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=mask).logits
        right += int((logits.argmax(-1).numpy() == labels[numbers]).sum())
    return right / len(rows)


def main() -> None:
    """Train and write the answer."""
    parser = common.parser(__doc__)
    parser.add_argument("--compile-mode", default=None, help="torch.compile's mode")
    parser.add_argument("--pad-to", type=int, default=None, help="fine-tuning: a multiple")
    options = parser.parse_args()
    if options.compile is None:
        # Reviews come in every length, and each new one may compile anew.
        options.compile = options.flags == "best" and options.task != "finetune"
    set_seed(options.seed)
    finetune = options.task == "finetune"
    model, rows, collate, work = (classifier if finetune else language_model)(options)
    clock = common.Clock(options.warm_up)
    judge = accuracy if finetune else bits_per_byte
    evaluate = (lambda: judge(model, options)) if options.evaluate_every else None
    watch = Watch(clock, evaluate, options.evaluate_every)
    with tempfile.TemporaryDirectory() as folder:
        chosen = arguments(options, folder)
        trainer = CountedTrainer(
            model=model,
            args=TrainingArguments(**chosen),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.train()
    more: dict[str, Any] = {}
    if watch.curve:
        more["curve"] = watch.curve
    if finetune:
        last = watch.curve[-1][2] if watch.curve else accuracy(model, options)
        more |= {"accuracy": last, "padded_tokens": trainer.padded_tokens}
    kept = {k: v for k, v in chosen.items() if k != "output_dir"}
    common.write_result(
        options.out,
        f"Hugging Face Trainer ({options.flags}{', compiled' if options.compile else ''})",
        clock,
        versions={
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        settings=kept | {"threads": torch.get_num_threads(), "pad_to": options.pad_to},
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=work,
        **more,
    )


if __name__ == "__main__":
    main()
