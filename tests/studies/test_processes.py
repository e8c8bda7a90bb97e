"""Jobs share the machine: each gets its cores and its GPUs."""

import os

import pytest
import torch

from binaryvit.studies import processes
from binaryvit.studies.processes import Processes, default_jobs, shares


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 cores, and GPUs that are visible as CUDA_VISIBLE_DEVICES says (None: `gpus` of them)."""

    def machine(gpus=0, visible=None):
        monkeypatch.setattr(processes, "_cores", lambda: set(range(8)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return machine


def gpus_of(jobs, each=1):
    return [share.environment.get("CUDA_VISIBLE_DEVICES") for share in shares(jobs, each)]


def test_by_default_one_job_for_each_gpu_or_group_of_gpus(machine):
    machine()
    assert default_jobs() == 1
    machine(gpus=8)
    assert (default_jobs(), default_jobs(4), default_jobs(16)) == (8, 2, 1)


def test_each_job_has_gpus_of_its_own_under_the_ids_that_are_visible(machine):
    machine(gpus=4)
    assert gpus_of(4) == ["0", "1", "2", "3"] and gpus_of(2, 2) == ["0,1", "2,3"]
    assert gpus_of(1) == [None], "one job sees what the user lets it see"
    assert gpus_of(2, 8) == [None, None], "more GPUs than there are: training says so"
    machine(gpus=2, visible="5,7")
    assert gpus_of(3) == ["5", "7", "5"]
    machine(gpus=1, visible="MIG-a,MIG-b")  # CUDA counts one part per process
    assert gpus_of(2) == ["MIG-a", "MIG-b"] and default_jobs() == 2


@pytest.mark.parametrize("jobs", [2, 3, 8, 16])
def test_jobs_split_the_cores_evenly(machine, jobs):
    machine()
    split = [share.cores for share in shares(jobs)]
    assert {len(cores) for cores in split} == {max(1, 8 // jobs)}
    assert len(set().union(*split)) == min(8, jobs * (8 // jobs or 1))
    assert gpus_of(jobs) == [None] * jobs


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin threads")
def test_a_share_restricts_the_thread_that_takes_it_and_no_other():
    before, tasks, seen = os.sched_getaffinity(0), iter(range(2)), {}

    def work(task, share):
        seen[task] = os.sched_getaffinity(0), share.cores

    Processes().in_parallel(lambda: next(tasks, None), work, shares(2))
    assert seen.keys() == {0, 1} and all(pinned == cores for pinned, cores in seen.values())
    assert os.sched_getaffinity(0) == before
