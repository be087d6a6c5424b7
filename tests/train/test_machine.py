"""What training asks of the machine: the cores that it was granted, the memory that it holds."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from danlu.train import machine

CPU = torch.device("cpu")
MEGABYTE = 2**20


@pytest.fixture
def eight_threads(monkeypatch):
    """A process on eight cores, whose torch would use them all."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("200000 100000\n", 2),
        ("400000 100000\n", 4),
        ("50000 50000\n", 1),
        ("250000 100000\n", 2),  # half a core more would be half a thread that waits
        ("30000 100000\n", 1),  # less than a core is still a thread
        ("1600000 100000\n", 8),  # more than there are
        ("max 100000\n", 8),
        ("", 8),
        ("rubbish\n", 8),
        (None, 8),
    ],
)
@pytest.mark.usefixtures("eight_threads")
def test_threads_are_as_many_as_the_quota_grants_cores(monkeypatch, tmp_path, quota, threads):
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota, encoding="utf-8")
    monkeypatch.setattr(machine, "_QUOTA", path)
    machine.use_granted_cores()
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("eight_threads")
def test_a_process_bound_to_fewer_cores_uses_those(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    machine.use_granted_cores()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("eight_threads")
def test_the_user_s_own_number_of_threads_has_the_last_word(monkeypatch, tmp_path):
    path = tmp_path / "cpu.max"
    path.write_text("100000 100000", encoding="utf-8")
    monkeypatch.setattr(machine, "_QUOTA", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    machine.use_granted_cores()
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("eight_threads")
def test_threads_are_never_made_more(monkeypatch, tmp_path):
    path = tmp_path / "cpu.max"
    path.write_text("400000 100000", encoding="utf-8")
    monkeypatch.setattr(machine, "_QUOTA", path)
    torch.set_num_threads(1)
    machine.use_granted_cores()
    assert torch.get_num_threads() == 1


def test_the_peak_remembers_what_was_held_until_it_is_forgotten():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process reset its peak")
    machine.forget_peak(CPU)
    before = machine.peak_memory(CPU)
    held = np.ones(200 * MEGABYTE, np.uint8)  # written to, so that it is really there
    del held
    peak = machine.peak_memory(CPU)
    assert 190 * MEGABYTE < peak - before < 260 * MEGABYTE
    machine.forget_peak(CPU)
    assert machine.peak_memory(CPU) < peak - 150 * MEGABYTE


def test_the_peak_is_in_bytes():
    import resource

    assert machine.peak_memory(CPU) > 50 * MEGABYTE  # torch alone
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert machine.peak_memory(CPU) <= most + 10 * MEGABYTE


def test_forgetting_where_the_system_refuses_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CLEAR", tmp_path)  # a folder: writing to it fails
    machine.forget_peak(CPU)
    monkeypatch.setattr(machine, "_CLEAR", tmp_path / "none")
    machine.forget_peak(CPU)


def test_without_proc_the_peak_is_that_of_the_process_s_life(monkeypatch, tmp_path):
    wanted = machine.peak_memory(CPU)
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "none")
    assert machine.peak_memory(CPU) >= 0.9 * wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_peak_is_that_of_tensors():
    gpu = torch.device("cuda")
    machine.forget_peak(gpu)
    before = machine.peak_memory(gpu)
    held = torch.ones(200 * MEGABYTE, dtype=torch.uint8, device=gpu)
    del held
    assert machine.peak_memory(gpu) - before >= 200 * MEGABYTE
    machine.forget_peak(gpu)
    assert machine.peak_memory(gpu) == pytest.approx(before, abs=MEGABYTE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_precision_is_what_was_asked_for(precision):
    wanted = {"float32": False, "bfloat16": True, "auto": machine.fast_bfloat16(CPU)}[precision]
    a = torch.randn(4, 4)
    with machine.autocast(precision, CPU):
        found = a @ a
    assert found.dtype == (torch.bfloat16 if wanted else torch.float32)


def test_the_matrix_peak_is_a_plausible_speed():
    assert 1e8 < machine.matrix_peak(CPU, torch.float32, seconds=0.1) < 1e15
