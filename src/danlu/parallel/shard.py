"""A model divided among processes, by names and from outside.

The model knows nothing of it. Its parameters become DTensors, which say of themselves how
they are divided: checkpoints, optimisers and norms need no other record of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.nn.utils import parametrize

from danlu.parallel.mesh import REPLICATE, SHARD, TENSOR, Mesh


def divide(
    model: nn.Module, mesh: Mesh, split: Mapping[str, int], branches: tuple[str, ...]
) -> None:
    """Divide a model in place.

    Parameters
    ----------
    model : nn.Module
        The same on every process.
    mesh : Mesh
    split : mapping of str to int
        How a layer is divided among the processes of the axis ``tensor``: the end of a
        matrix's name, and the dimension along which it is cut. All others stay whole.
    branches : tuple of str
        Ends of the names of the modules whose outputs are then sums over these processes.
    """
    devices = mesh.devices
    if devices is None:
        return
    if mesh.tensor > 1:
        _divide_layers(model, devices[TENSOR], split, branches)
    # Along one axis alone it would be plain FSDP; with `shard` of size 1, plain DDP.
    among = devices[REPLICATE, SHARD]
    layers = [m for name, m in model.named_modules() if name.rpartition(".")[0].endswith("layers")]
    for module in (*layers, model):
        fully_shard(module, mesh=among)
        assert isinstance(module, FSDPModule)
        # Losses are sums, divided by a count that all processes know: gradients are added.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Say whether the next backward pass adds the processes' gradients up."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def plain_name(name: str) -> str:
    """Return the name that a parameter had before its model was divided."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, of which this process may hold a part; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_own(tensor: Tensor, held: Tensor) -> Tensor:
    """Return a tensor divided as another is, of which this process holds `held`."""
    if not isinstance(tensor, DTensor):
        return held
    mesh, shape, stride = tensor.device_mesh, tensor.shape, tensor.stride()
    return DTensor.from_local(
        held, mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )


def divided_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, the same on every process, divided as another is."""
    if not isinstance(other, DTensor):
        return tensor
    mesh = other.device_mesh
    alike = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return alike.redistribute(mesh, other.placements)


class _Local(nn.Module):
    """Shows a module the part of its parameter that is here.

    Parameters
    ----------
    gradient : Placement
        What the part's gradient is to that of the whole.
    """

    def __init__(self, gradient: Placement) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, parameter: DTensor) -> Tensor:
        return parameter.to_local(grad_placements=[self.gradient])


def _divide_layers(
    model: nn.Module, devices: Any, split: Mapping[str, int], branches: tuple[str, ...]
) -> None:
    for name, module in list(model.named_modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            cuts = [cut for end, cut in split.items() if f"{name}.{key}".endswith(end)]
            placement: Placement = Shard(cuts[0]) if cuts else Replicate()
            # What stays whole inside a branch (a norm of heads) is used by each process's part.
            inside = any(f".{branch}." in f".{name}." for branch in branches)
            gradient = Partial() if inside and not cuts else placement
            divided = distribute_tensor(parameter.detach(), devices, [placement])
            setattr(module, key, nn.Parameter(divided, parameter.requires_grad))
            parametrize.register_parametrization(module, key, _Local(gradient), unsafe=True)
        if name.endswith(branches):
            module.register_forward_pre_hook(_enter(devices))
            module.register_forward_hook(_leave(devices))


def _enter(devices: Any) -> Any:
    """Return a hook: what goes in is whole; its gradient is a sum of the processes' parts."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = DTensor.from_local(arguments[0], devices, [Replicate()], run_check=False)
        return (x.to_local(grad_placements=[Partial()]), *arguments[1:])

    return hook


def _leave(devices: Any) -> Any:
    """Return a hook: what comes out is a sum of the processes' parts; its gradient is whole."""

    def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        part = DTensor.from_local(out, devices, [Partial()], run_check=False)
        return part.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])

    return hook
