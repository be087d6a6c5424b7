"""Where the time of a training step goes, and how near the processor's best it comes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from danlu.batch import Batch
from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.feed import BatchSource, ahead
from danlu.train.loop import forward_and_backward
from danlu.train.machine import (
    forget_peak,
    kept_memory,
    matrix_peak,
    peak_memory,
    use_granted_cores,
    working_dtype,
)
from danlu.train.objective import Objective

_WARM_UP, _STEPS, _TRACED = 3, 12, 3
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn"),
    "attention": ("_Attention", "scaled_dot_product", "flash_attention", "efficient_attention"),
    "norms and activations": (
        *("_AddRMSNorm", "_SwiGLU", "_GELU", "gelu", "silu", "relu", "aten::tanh"),
        *("aten::sigmoid", "rsqrt", "dropout", "batch_norm", "layer_norm"),
    ),
    "recurrences": ("lstm", "gru"),
    "convolutions": ("convolution",),
    "loss": ("_CrossEntropy", "log_softmax", "nll_loss", "multi_margin", "mse_loss", "huber"),
}


@kept_memory()
def profile(
    model: nn.Module,
    objective: Objective,
    source: BatchSource,
    settings: Training,
    flops: Callable[[Batch], int],
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Train a few steps and measure them.

    Parameters
    ----------
    model : nn.Module
        On `device`; it is changed.
    objective, source, settings, seed
        As :func:`danlu.train.loop.train` takes them.
    flops : callable of Batch to int
        Useful operations of a step.
    device : torch.device

    Returns
    -------
    dict
        ``parts`` (name, seconds and share of a step), ``step_seconds`` (median),
        ``tokens_per_second``, ``flops_per_second``, ``peak_flops_per_second`` (the best
        matrix product of the same minute), ``share_of_peak``, ``peak_memory_bytes``,
        ``steps``, ``precision``.
    """
    use_granted_cores()
    forget_peak(device)
    model.train()
    torch.manual_seed(seed)
    optimizers = optim.build(model, settings)
    total = min(_WARM_UP + _STEPS + _TRACED, settings.steps or 10**9)
    total = max(total, _WARM_UP + _TRACED + 1)
    batches = ahead(source, 0, total)
    phases: list[dict[str, float]] = []
    tokens = operations = 0
    for number in range(total - _TRACED):
        clock = _Clock(device)
        parts = next(batches)
        clock.mark("waiting for data")
        forward_and_backward(model, objective, parts, settings, device, clock.mark)
        optim.step(optimizers, settings.gradient_clip, 1e-9, settings.l1)
        clock.mark("optimiser")
        if number >= _WARM_UP:
            phases.append(clock.seconds)
            tokens += sum(part.num_tokens for part in parts)
            operations += sum(map(flops, parts))
    held = peak_memory(device)
    shares = _traced(model, objective, batches, settings, device)
    seconds = [sum(each.values()) for each in phases]
    step = statistics.median(seconds)
    phase = {name: statistics.median(each[name] for each in phases) for name in phases[0]}
    computed = phase.pop("forward") + phase.pop("backward")
    named = {name: computed * share for name, share in shares.items()} | phase
    dtype = working_dtype(settings.precision, device)
    best = matrix_peak(device, dtype)
    done = operations / sum(seconds)
    return {
        "parts": [
            {"name": name, "seconds": value, "share": value / sum(named.values())}
            for name, value in sorted(named.items(), key=lambda item: -item[1])
        ],
        "step_seconds": step,
        "tokens_per_second": tokens / sum(seconds),
        "flops_per_second": done,
        "peak_flops_per_second": best,
        "share_of_peak": done / best,
        "peak_memory_bytes": held,
        "steps": len(seconds),
        "precision": str(dtype).removeprefix("torch."),
    }


class _Clock:
    """Seconds between marks."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self._last = device, time.perf_counter()

    def mark(self, name: str) -> None:
        """Give the time since the last mark a name."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def _traced(
    model: nn.Module,
    objective: Objective,
    batches: Any,
    settings: Training,
    device: torch.device,
) -> dict[str, float]:
    """Return each kind of operation's share of the forward and backward passes."""
    found = dict.fromkeys((*_KINDS, "copies and the rest"), 0.0)
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as trace:
        for parts in batches:
            forward_and_backward(model, objective, parts, settings, device)
            model.zero_grad()
    for event in trace.key_averages():
        if on_gpu and event.device_type.name != "CPU":
            continue  # a kernel's own row repeats what its operation's row holds
        kinds = (kind for kind, words in _KINDS.items() if any(w in event.key for w in words))
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[next(kinds, "copies and the rest")] += own
    whole = sum(found.values()) or 1.0
    return {kind: value / whole for kind, value in found.items()}
