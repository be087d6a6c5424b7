"""How the processes of one training run are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


@dataclass(frozen=True, slots=True)
class Mesh:
    """The place of this process among all of them.

    Attributes
    ----------
    devices : DeviceMesh, optional
        With the axes ``replicate``, ``shard`` and ``tensor``: along the first two, each
        process sees documents of its own; along the last, all see the same ones and
        compute a share of every layer. None for a process by itself.
    beside : ProcessGroup, optional
        Of all processes, for what a thread of theirs does while they train.
    """

    devices: DeviceMesh | None = None
    beside: Any = None

    @property
    def shares(self) -> int:
        """How many processes each batch is shared out to."""
        return self._size(REPLICATE) * self._size(SHARD)

    @property
    def share(self) -> int:
        """Which of these shares is this process's, from 0."""
        if self.devices is None:
            return 0
        row: int = self.devices.get_local_rank(REPLICATE)
        column: int = self.devices.get_local_rank(SHARD)
        return row * self._size(SHARD) + column

    @property
    def tensor(self) -> int:
        """How many processes share a layer."""
        return self._size(TENSOR)

    @property
    def first(self) -> bool:
        """Whether this is the one process that speaks and writes."""
        return self.devices is None or dist.get_rank() == 0

    def added(self, value: Tensor) -> Tensor:
        """Return the sum of a number over the shares of a batch."""
        if self.devices is not None:
            for axis in (REPLICATE, SHARD):
                dist.all_reduce(value, group=self.devices[axis].get_group())
        return value

    def anywhere(self, true: bool) -> bool:
        """Whether something is true of any process; all are told the same."""
        if self.devices is None:
            return true
        found = torch.tensor(int(true))
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def told(self, value: str) -> str:
        """Return on every process what the first one says."""
        if self.devices is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def meet(self) -> None:
        """Wait beside training until all processes have come this far."""
        if self.devices is not None:
            dist.barrier(group=self.beside)

    def _size(self, axis: str) -> int:
        return 1 if self.devices is None else self.devices[axis].size()


ALONE = Mesh()
"""A process by itself."""


def lay_out(processes: int, shard: int, tensor: int, device_type: str) -> Mesh:
    """Lay the processes of the default group out.

    Parameters
    ----------
    processes : int
        All of them; a multiple of `shard` × `tensor`.
    shard : int
        Among how many processes weights, gradients and moments are divided (FSDP: Zhao et
        al., 2023; ZeRO: Rajbhandari et al., 2020). The remaining factor replicates (DDP).
    tensor : int
        Among how many processes each layer is divided (Shoeybi et al., "Megatron-LM", 2019).
    device_type : str
        ``"cpu"`` or ``"cuda"``.
    """
    if processes == 1:
        return ALONE
    sizes = (processes // (shard * tensor), shard, tensor)
    devices = init_device_mesh(device_type, sizes, mesh_dim_names=(REPLICATE, SHARD, TENSOR))
    return Mesh(devices, dist.new_group(backend="gloo"))
