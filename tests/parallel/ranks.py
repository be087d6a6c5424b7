"""Several processes on this machine, for tests: each runs the same function."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from danlu.parallel.mesh import lay_out


def _begin(rank, function, processes, shard, tensor, port, arguments):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    try:
        function(lay_out(processes, shard, tensor, "cpu"), *arguments)
    finally:
        dist.destroy_process_group()


def together(function, processes, shard, tensor, *arguments):
    """Run ``function(mesh, *arguments)`` in every process; an error in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_begin, (function, processes, shard, tensor, port, arguments), processes)
