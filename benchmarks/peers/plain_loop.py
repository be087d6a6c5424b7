"""A loop that a good engineer would write by hand, in the manner of nanoGPT.

One model in one file, documents laid end to end in blocks, bfloat16 autocast,
torch.compile over model and loss together, fused AdamW, clipped gradients.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import common
import documents
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU; queries, keys and values in one product."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Model(nn.Module):
    """Ids and targets in, mean loss out; tied embeddings."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width, heads = shape["width"], shape["heads"]
        self.embedding = nn.Embedding(shape["vocab_size"], width)
        self.layers = nn.ModuleList(
            Layer(width, heads, shape["hidden"]) for _ in range(shape["layers"])
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        half = width // heads // 2
        rates = 10_000.0 ** (-torch.arange(half) / half)
        angles = torch.arange(shape["context"])[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main() -> None:
    """Train and write the answer."""
    options = common.parser(__doc__).parse_args()
    if options.task != "pretrain":
        raise SystemExit("this contestant only pre-trains")
    best = options.flags == "best"
    compiled = best if options.compile is None else options.compile
    torch.manual_seed(options.seed)
    shape: dict[str, int] = options.shape
    context = shape["context"]
    model = Model(shape)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": common.WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        betas=common.BETAS,
        fused=True,
    )
    run: Any = torch.compile(model) if compiled else model
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
        with torch.autocast("cpu", torch.bfloat16) if best else nullcontext():
            loss = run(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), common.GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(shape["batch"] * context, loss.detach())
    common.write_result(
        options.out,
        f"plain PyTorch loop{', compiled' if compiled else ''}",
        clock,
        versions={"torch": torch.__version__},
        settings={"bf16": best, "compile": compiled, "threads": torch.get_num_threads()},
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=common.flops_per_token(shape, attended=(context + 1) / 2),
    )


if __name__ == "__main__":
    main()
