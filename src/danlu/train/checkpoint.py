"""Checkpoints: what a state is made of, which are kept, and saving beside training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.artifact import read_json
from danlu.errors import DivergedError, MachineError, from_machine
from danlu.parallel.mesh import ALONE, Mesh
from danlu.parallel.shard import own, plain_name, with_own
from danlu.train import durable
from danlu.train.average import PREFIX as AVERAGE
from danlu.train.average import Average
from danlu.train.durable import Like
from danlu.train.machine import free_memory

_MODEL, _OPTIMIZER = "model.", "optimizer."
_STEP, _PAUSE, _BEST = "step", "pause", "best"


def pack(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Flatten model and optimisers into named tensors and plain values.

    Tied tensors are given once, under their first name. The tensors are those in use: the next
    step changes them.
    """
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in unique_tensors(model).items()}
    groups = []
    for number, optimizer in enumerate(optimizers):
        state, names = optimizer.state_dict(), _names(model, optimizer)
        groups.append(state["param_groups"])
        for index, slots in state["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    key = f"{_OPTIMIZER}{number}.{names[index]}.{slot}"
                    tensors[key] = value if isinstance(value, Tensor) else torch.tensor(value)
    return {key: tensor.detach() for key, tensor in tensors.items()}, groups


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name, each once even where two names share it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in _named(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a model's tensors under all their names, as the very objects that it holds."""
    return [(plain_name(name), t) for name, t in model.state_dict(keep_vars=True).items()]


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters in an optimiser's order, which dividing may change."""
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def template(model: nn.Module) -> Like:
    """Return what says of each tensor of a state how it is held: as a tensor of the model."""
    held = unique_tensors(model)

    def like(key: str, shape: tuple[int, ...]) -> Tensor | None:
        name = key.removeprefix(_MODEL).removeprefix(AVERAGE)
        if key.startswith(_OPTIMIZER):
            name = key.removeprefix(_OPTIMIZER).partition(".")[2].rpartition(".")[0]
        found = held.get(name)
        return found if found is not None and tuple(found.shape) == shape else None

    return like


def unpack(
    tensors: dict[str, Tensor],
    groups: list[Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Put back what :func:`pack` took."""
    weights = {k.removeprefix(_MODEL): t for k, t in tensors.items() if k.startswith(_MODEL)}
    stored = {id(tensor): name for name, tensor in _named(model) if name in weights}
    for name, tensor in _named(model):
        if name not in weights and id(tensor) in stored:  # another name of a tied tensor
            weights[name] = weights[stored[id(tensor)]]
    own_names = {plain_name(name): name for name in model.state_dict(keep_vars=True)}
    model.load_state_dict({own_names.get(name, name): t for name, t in weights.items()})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        names = _names(model, optimizer)
        for key, tensor in tensors.items():
            if key.startswith(own_part := f"{_OPTIMIZER}{number}."):
                name, _, slot = key.removeprefix(own_part).rpartition(".")
                state.setdefault(names.index(name), {})[slot] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": groups[number]})


def validated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return of a state the weights that validation saw: their average where there is one."""
    names = [key.removeprefix(_MODEL) for key in tensors if key.startswith(_MODEL)]
    return {f"{_MODEL}{n}": tensors.get(f"{AVERAGE}{n}", tensors[f"{_MODEL}{n}"]) for n in names}


def check_finite(tensors: dict[str, Tensor]) -> None:
    """See that a state can be gone on from.

    Raises
    ------
    DivergedError
        If a weight is no number.
    """
    for key, tensor in tensors.items():
        here = own(tensor)
        if key.startswith(_MODEL) and here.is_floating_point() and not here.isfinite().all():
            raise DivergedError(
                f"the weights are no longer finite ({key.removeprefix(_MODEL)}) and are not saved",
                where="training",
                mend="lower learning_rate; the checkpoint before is whole",
            )


class Checkpoints:
    """The checkpoints of one training stage, written by a thread while training goes on.

    The thread copies the state into buffers that are kept for the next save, and writes those.
    Weights stand still until the next step's gradient is there, so nobody waits for the copy
    but who asks :meth:`copied` before changing them. At most one save is in flight. What goes
    wrong in the thread is raised by whatever is asked next. Where memory is too short for the
    copies a save is waited for instead, which is said.

    Parameters
    ----------
    folder : Path
        Holds ``step-N`` folders, at most one ``pause-N``, and ``best-N`` for each step that one
        of them names as the best so far.
    keep : int
        How many of the latest are kept, beside their best.
    say : callable
        Told of a damaged checkpoint that is passed over.
    mesh : Mesh
        The processes that save and read together.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        say: Callable[[str], None] = lambda _: None,
        mesh: Mesh = ALONE,
    ) -> None:
        self.folder, self.keep, self.say, self.mesh = folder, keep, say, mesh
        self._worker: ThreadPoolExecutor | None = None
        self._copying: Future[None] | None = None
        self._writing: tuple[int, Future[None]] | None = None
        self._buffers: dict[str, Tensor] = {}
        self._beside: bool | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        record: dict[str, Any],
        average: Average | None = None,
        best: dict[str, Any] | None = None,
        *,
        scheduled: bool = True,
    ) -> None:
        """Save the state after `step` steps; keep the last few.

        Parameters
        ----------
        step : int
        model, optimizers, average
            What is saved.
        record : dict
            Plain values that belong to it; its ``progress`` names the ``best_step`` so far.
        best : dict, optional
            Given if the weights have scored best so far: they are written by themselves, too,
            with these values.
        scheduled : bool
            False for one that is made because time went by or the process must end: the next
            one takes its place, and training never goes back to it.
        """
        self.settle()
        tensors, groups = pack(model, optimizers)
        if average is not None:
            tensors |= average.state()
        if self._beside is None:
            self._beside = self._room_beside(tensors)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        copying: Future[None] = Future()
        kind, record = _STEP if scheduled else _PAUSE, {**record, "step": step, "groups": groups}
        if self._beside:
            buffers = {key: self._buffer(key, tensor) for key, tensor in tensors.items()}
            # A forward pass changes these: they cannot wait for the thread.
            names = [plain_name(name) for name, _ in model.named_buffers()]
            moving = tensors.keys() & {f"{_MODEL}{name}" for name in names}
            _copy(tensors, buffers, moving)
        else:
            buffers = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}

        def job() -> None:
            try:
                if self._beside:
                    _copy(tensors, buffers, tensors.keys() - moving)
            finally:
                copying.set_result(None)
            self._write(kind, step, buffers, record, best)

        self._copying, self._writing = copying, (step, self._worker.submit(job))
        if not self._beside:
            self.settle()

    def copied(self) -> None:
        """Wait until the state of the last save may be changed; a forward pass may always."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None

    def settle(self, wait: bool = True) -> None:
        """Raise what the save in flight ran into; wait for its end, or only look.

        Raises
        ------
        MachineError
            If the disk refused it. The checkpoints before are whole.
        """
        if self._writing is None or not (wait or self._writing[1].done()):
            return
        (step, job), self._writing = self._writing, None
        try:
            job.result()
        except Exception as error:
            if (refused := from_machine(error)) is None:
                raise
            last = max([*self._numbered(_STEP), *self._numbered(_PAUSE)], default=0)
            kept = f"step {last:,}" if last else "the beginning"
            raise MachineError(
                f"{refused.what}: the checkpoint of step {step:,} could not be written",
                where=refused.where or str(self.folder),
                mend=f"{refused.mend or 'mend that'}; then the same command goes on from {kept}",
            ) from error

    def close(self) -> None:
        """Wait for the save in flight, and let the thread go."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def reserve(self, needed: int) -> None:
        """See that the disk has room for so many bytes, what is there already included.

        Raises
        ------
        MachineError
            If it has not.
        """
        if not self.mesh.first:
            return
        durable.clear(self.folder)
        held = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder).free
        if needed - held > free:
            raise MachineError(
                f"the run's checkpoints need {needed / 1e9:.2f} GB, and the disk has "
                f"{(free + held) / 1e9:.2f} GB for them",
                where=str(self.folder),
                mend="free some space, lower keep_checkpoints, or choose another disk with --out",
            )

    def latest(
        self, like: Like = lambda *_: None, *, scheduled: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, or None; say which were passed over."""
        self.settle()
        self.mesh.meet()
        folders = self._numbered(_STEP)
        if not scheduled:
            folders |= self._numbered(_PAUSE)
        for _, folder in sorted(folders.items(), reverse=True):
            if found := self._read(folder, like):
                return found
        return None

    def best(
        self, step: int | None = None, like: Like = lambda *_: None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the best weights, those after `step` or the newest, if they are whole."""
        self.settle()
        self.mesh.meet()
        found = self._numbered(_BEST)
        wanted = max(found, default=0) if step is None else step
        return self._read(found[wanted], like) if wanted in found else None

    def _read(
        self, folder: Path, like: Like = lambda *_: None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        try:
            return durable.read(folder, like, self.mesh)
        except durable.DamagedError as error:
            self.say(f"checkpoint {folder.name} is damaged and is passed over: {error}")
            return None

    def _numbered(self, kind: str) -> dict[int, Path]:
        named = {p.name.removeprefix(f"{kind}-"): p for p in self.folder.glob(f"{kind}-*")}
        return {int(number): path for number, path in named.items() if number.isdecimal()}

    def _write(
        self,
        kind: str,
        step: int,
        tensors: dict[str, Tensor],
        record: dict[str, Any],
        best: dict[str, Any] | None,
    ) -> None:
        check_finite(tensors)
        for each in (_STEP, _PAUSE, _BEST):
            for number, folder in self._numbered(each).items():
                # Damaged, or training would have gone on from it.
                if number > step and self.mesh.first:
                    durable.remove(folder)
        if best is not None:
            durable.write(self._path(_BEST, step), validated(tensors), best, self.mesh)
        durable.write(self._path(kind, step), tensors, record, self.mesh)
        if self.mesh.first:
            self._tidy(kind, step)

    def _tidy(self, kind: str, step: int) -> None:
        """Remove what the checkpoint of a step makes superfluous."""
        old = [self._path(_STEP, n) for n in sorted(self._numbered(_STEP))[: -self.keep]]
        old += [
            self._path(_PAUSE, n) for n in self._numbered(_PAUSE) if (kind, step) != (_PAUSE, n)
        ]
        for folder in old:
            durable.remove(folder)
        states = [*self._numbered(_STEP).values(), *self._numbered(_PAUSE).values()]
        named = {step, *map(_best_of, states)}
        for number, folder in self._numbered(_BEST).items():
            if number not in named:
                durable.remove(folder)

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}-{step:08d}"

    def _room_beside(self, tensors: dict[str, Tensor]) -> bool:
        """Whether there is memory for copies of the tensors; say so if not."""
        size = sum(own(t).numel() * t.element_size() for t in tensors.values())
        free = free_memory()
        if free is None or 2 * size < free:
            return True
        self.say(
            f"memory is short, so training waits for every checkpoint: a copy of its "
            f"{size / 1e9:.2f} GB would be made, and {free / 1e9:.2f} GB are free"
        )
        return False

    def _buffer(self, key: str, tensor: Tensor) -> Tensor:
        """Return what a tensor (or this process's part) is copied to, the same every time."""
        if key not in self._buffers:
            here = own(tensor)
            held = torch.empty(here.shape, dtype=here.dtype, pin_memory=here.is_cuda)
            self._buffers[key] = with_own(tensor, held)
        return self._buffers[key]


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], buffers: dict[str, Tensor], keys: AbstractSet[str]) -> None:
    for key in keys:
        own(buffers[key]).copy_(own(tensors[key]), non_blocking=True)
    if any(tensors[key].is_cuda for key in keys):
        torch.cuda.synchronize()


def _best_of(folder: Path) -> int:
    """Return the step that a checkpoint names as the best so far; 0 if it names none."""
    try:
        return int(read_json(folder / durable.RECORD)["progress"]["best_step"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0
