"""LitGPT: its model, its loss and the loop of its ``pretrain`` under Lightning Fabric.

The loop is written out here because LitGPT's own wants a checkpoint folder, a
logger and a measurement of FLOPs around it, all of which would only slow it down.
"""

from __future__ import annotations

from importlib.metadata import version

import common
import documents
import lightning
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.pretrain import initialize_weights
from litgpt.utils import chunked_cross_entropy


def config_of(shape: dict[str, int]) -> Config:
    """Return the Llama of a shape as LitGPT words it."""
    return Config(
        name="benchmark",
        block_size=shape["context"],
        n_layer=shape["layers"],
        n_embd=shape["width"],
        n_head=shape["heads"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        intermediate_size=shape["hidden"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
    )


def main() -> None:
    """Train and write the answer."""
    parser = common.parser(__doc__)
    parser.add_argument("--precision", default="bf16-mixed", help="Fabric's name: bf16-true, …")
    parser.add_argument("--loss-chunk", type=int, default=128, help="LitGPT's default; 0 is none")
    options = parser.parse_args()
    if options.task != "pretrain":
        raise SystemExit("this contestant only pre-trains")
    shape: dict[str, int] = options.shape
    context = shape["context"]
    compiled = options.compile is not False
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=options.precision)
    fabric.seed_everything(options.seed)
    with fabric.init_module(empty_init=False):
        model = GPT(config_of(shape))
    initialize_weights(fabric, model, n_layer=shape["layers"], n_embd=shape["width"])
    model.transformer.wte.weight = model.lm_head.weight
    parameters = sum(p.numel() for p in model.parameters())
    running = fabric.setup(torch.compile(model) if compiled else model)
    # LitGPT asks for the fused kernel on CUDA only; it is faster here too.
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(
            running.parameters(),
            lr=options.learning_rate,
            betas=common.BETAS,
            weight_decay=common.WEIGHT_DECAY,
            fused=True,
        )
    )
    table = documents.blocks(options.data, "train", context, overlap=1)
    total = options.warm_up + (options.steps or len(table) // shape["batch"])
    clock = common.Clock(options.warm_up)
    clock.begin()
    for step, rows in enumerate(
        documents.block_batches(table, shape["batch"], total, options.seed)
    ):
        factor = common.schedule(step, total, options.schedule_warm_up)
        for group in optimizer.param_groups:
            group["lr"] = factor * options.learning_rate
        batch = torch.from_numpy(rows)
        logits = running(batch[:, :-1].contiguous())
        targets = batch[:, 1:].contiguous()
        loss = chunked_cross_entropy(logits, targets, chunk_size=options.loss_chunk)
        fabric.backward(loss)
        fabric.clip_gradients(running, optimizer, max_norm=common.GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.step(shape["batch"] * context, loss.detach())
    common.write_result(
        options.out,
        f"LitGPT{', compiled' if compiled else ''}",
        clock,
        versions={
            "torch": torch.__version__,
            "litgpt": version("litgpt"),
            "lightning": version("lightning"),
        },
        settings={
            "precision": options.precision,
            "compile": compiled,
            "loss_chunk": options.loss_chunk,
            "threads": torch.get_num_threads(),
        },
        parameters=parameters,
        flops_per_token=common.flops_per_token(shape, attended=(context + 1) / 2),
    )


if __name__ == "__main__":
    main()
