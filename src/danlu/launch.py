"""The processes that train: one, several on this machine, under torchrun, or on Ray."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from danlu import errors
from danlu.artifact import read_json, write_json
from danlu.errors import DanluError, Interrupted, MachineError
from danlu.interrupt import Interruption
from danlu.log import Events, Screen
from danlu.recipe import Recipe
from danlu.recipe.launch import shared_out

_PATIENCE = timedelta(hours=12)  # the first process may clean data for long before all train
_FAILED, _STOP = "failed.json", "stop"
_GRACE = 3  # seconds that the others have to end when one is lost
_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def fit(
    stage: str,
    recipe: Recipe,
    paths: dict[str, Path],
    folder: Path,
    events: list[Path],
    screen: Screen,
    interruption: Interruption,
) -> None:
    """Train a stage in as many processes as the recipe asks for.

    Parameters
    ----------
    stage : {"pretrain", "finetune"}
    recipe : Recipe
        Filled.
    paths : dict of str to Path
        Folders of the stages before.
    folder : Path
        Where the stage writes; every process must see it.
    events : list of Path
        The logs that one of the processes appends to.
    screen : Screen
    interruption : Interruption
        Says when to save and leave.

    Raises
    ------
    Interrupted
        If it said so.
    MachineError
        If a process was lost more often than ``launch.restarts`` allows.
    """
    from danlu.train.machine import granted_cores

    recipe = shared_out(recipe, stage, recipe.launch.shares)
    job = {
        "stage": stage,
        "recipe": recipe.model_dump(mode="json"),
        "paths": {name: str(path) for name, path in paths.items()},
        "folder": str(folder),
        "events": [str(path) for path in events],
        "quiet": screen.console.quiet,
        "threads": max(1, granted_cores() // recipe.launch.processes),
    }
    launch = recipe.launch
    with interruption.deferred():
        if under_torchrun():
            with _group():
                _told(job)
                work(job, lambda: interruption.asked)
        elif launch.processes == 1:
            work(job, lambda: interruption.asked)
        else:
            screen.say(f"  {_described(recipe)}")
            begin = _on_ray if launch.on.startswith("ray") else _here
            (folder / _FAILED).unlink(missing_ok=True)  # of an attempt that was killed
            with _passed_on(interruption, folder / _STOP):
                saved = begin(job, recipe)
            if saved:
                raise Interrupted(saved)


@contextmanager
def _passed_on(interruption: Interruption, stop: Path) -> Iterator[None]:
    """Let all processes know, wherever they are, when this one is asked to leave: by a file."""
    stop.unlink(missing_ok=True)
    over = Event()

    def watch() -> None:
        while not over.wait(0.2):
            if interruption.asked:
                stop.touch()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        stop.unlink(missing_ok=True)


def _described(recipe: Recipe) -> str:
    launch = recipe.launch
    copies = launch.processes // launch.shard // launch.tensor
    ways = [(copies, "copies"), (launch.shard, "shards"), (launch.tensor, "parts of each layer")]
    said = " × ".join(f"{number} {what}" for number, what in ways if number > 1)
    return f"{launch.processes} processes ({launch.on}): {said}"


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1


def world_size() -> int:
    """Return how many processes there are, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the one that does what is not training."""
    return os.environ.get("RANK", "0") == "0"


def follow() -> None:
    """Train whatever the leading process is about to train, until it is done."""
    interruption = Interruption(quiet=True)
    with interruption.listening(), _group():
        while job := _told(None):
            with interruption.deferred():
                work(job, lambda: interruption.asked)
        _part()


def dismiss() -> None:
    """Let those that follow go, if there are any. After an error torchrun ends them."""
    if under_torchrun():
        with _group():
            _told(None)
            _part()


@contextmanager
def _group() -> Iterator[None]:
    """Be one of the processes that the environment tells of; leave if this opened the group."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=_PATIENCE)
    yield


def _part() -> None:
    """Leave the group together: whoever ends first takes its connections along."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _told(job: dict[str, Any] | None) -> dict[str, Any] | None:
    """Hand a job, or None, from the leading process to all; return it."""
    import torch.distributed as dist

    box = [json.dumps(job)]
    dist.broadcast_object_list(box, src=0)
    found: dict[str, Any] | None = json.loads(box[0])
    return found


def work(job: dict[str, Any], stopping: Callable[[], bool]) -> None:
    """Do one process's share of a training stage."""
    from danlu import fitting
    from danlu.parallel.mesh import lay_out
    from danlu.stages import device

    recipe = Recipe.model_validate(job["recipe"])
    launch = recipe.launch
    mesh = lay_out(launch.processes, launch.shard, launch.tensor, device().type)
    paths = {name: Path(path) for name, path in job["paths"].items()}
    events = Events(*map(Path, job["events"])) if mesh.first else None
    screen = Screen(quiet=job["quiet"] or not mesh.first)
    folder = Path(job["folder"])
    fitting.fit(job["stage"], recipe, paths, folder, events, screen, stopping, mesh)


def one_of_many(job: dict[str, Any]) -> str:
    """Be one of the processes that :func:`fit` has started: what each of them runs.

    Returns
    -------
    str
        Where training was saved, if it was asked to leave.
    """
    import torch

    _end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not in the main thread, where nothing is heard anyway
            signal.signal(number, signal.SIG_IGN)  # the process that started it says when to leave
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # never changed in place
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(job["threads"])
        os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    folder = Path(job["folder"])
    try:
        with _group():
            work(job, (folder / _STOP).exists)
            _part()
    except Interrupted as error:
        return error.what
    except DanluError as error:
        said = {"kind": type(error).__name__, "what": error.what}
        write_json(folder / _FAILED, said | {"where": error.where, "mend": error.mend})
        raise SystemExit(error.exit_code) from None
    return ""


def _end_with_parent() -> None:
    """Let the system end this process when the one that started it is gone."""
    with suppress(OSError, AttributeError):  # where there is no prctl
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _here(job: dict[str, Any], recipe: Recipe) -> str:
    """Start the processes on this machine, and watch over them."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)
    launch = recipe.launch
    for attempt in range(launch.restarts + 1):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=launch.processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,  # a fresh meeting place for each attempt is safer than the old one
            signals_to_handle="",
            shutdown_timeout=_GRACE,
        )
        try:
            saved: str = elastic_launch(config, one_of_many)(job)[0]
            return saved
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            how = f"process {rank} ended by {failure.signal_name()}"
            if failure.exitcode >= 0:
                how = f"process {rank} failed: {_last_line(failure.message)}"
            if attempt == launch.restarts or (Path(job["folder"]) / _FAILED).is_file():
                raise _lost(job, recipe, how) from None
    raise AssertionError("the last attempt returns or raises")


def _last_line(message: Any) -> str:
    """Return what an error was, of what torch tells about a process that it ended."""
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    return text.strip().rpartition("\n")[2] or "unknown error"


def _on_ray(job: dict[str, Any], recipe: Recipe) -> str:
    """Start the processes as Ray actors, and watch over them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MachineError(
            "Ray is not installed", where="launch.on", mend='pip install "danlu[ray]"'
        ) from None
    launch = recipe.launch
    address = launch.on if launch.on.startswith("ray://") else None
    if not ray.is_initialized():
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for attempt in range(launch.restarts + 1):
        actors: list[Any] = [ray.remote(_Rank).remote() for _ in range(launch.processes)]
        try:
            host, port = ray.get(actors[0].place.remote())
            all_of_them = waiting = [
                actor.run.remote(rank, launch.processes, host, port, job)
                for rank, actor in enumerate(actors)
            ]
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)  # an error in one is not waited out by the others
            saved: str = ray.get(all_of_them[0])
            return saved
        except ray.exceptions.RayError as error:
            if attempt == launch.restarts or (Path(job["folder"]) / _FAILED).is_file():
                raise _lost(job, recipe, str(error).splitlines()[-1]) from None
        finally:
            for actor in actors:
                ray.kill(actor)
    raise AssertionError("the last attempt returns or raises")


class _Rank:
    """One process of a Ray cluster."""

    def place(self) -> tuple[str, int]:
        """Return the address at which the others will find this one."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            port: int = free.getsockname()[1]
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return host, port

    def run(self, rank: int, processes: int, host: str, port: int, job: dict[str, Any]) -> str:
        """Do this process's share; see :func:`one_of_many`."""
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR=host, MASTER_PORT=str(port)
        )
        return one_of_many(job)


def _lost(job: dict[str, Any], recipe: Recipe, how: str) -> DanluError:
    """Return the error that a process gave before it ended, or what is known of its end."""
    told = Path(job["folder"]) / _FAILED
    if told.is_file():
        said = read_json(told)
        told.unlink()
        kind: type[DanluError] = getattr(errors, said.pop("kind"), MachineError)
        return kind(said.pop("what"), **said)
    times = f" {tried + 1} times" if (tried := recipe.launch.restarts) else ""
    return MachineError(
        f"training lost a process{times}: {how}",
        where=f"{job['stage']} in {recipe.launch.processes} processes",
        mend="run the recipe again, it goes on from the last checkpoint; launch.restarts does so "
        "by itself",
    )
