"""Where a result comes from: the commit, the package versions and the machine, for the run record."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from binaryvit.records.run_record import GitState, Hardware

_PACKAGES = (
    "binaryvit",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
    "safetensors",
    "scikit-learn",
    "papermill",
)


def _output(*command: str) -> str | None:
    # A git hook exports GIT_DIR and the like, which would point git at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_state(folder: str | Path | None = None) -> GitState:
    """Commit of the repository around `folder` (default: this package), and whether tracked files differ from it.

    Files below results/ do not count, since a study writes there while it runs. Both fields are None without git, and
    where git keeps nothing of the folder: a package installed somewhere inside a user's repository is not part of it.
    """
    folder = str(folder or Path(__file__).parent)
    root = _output("git", "-C", folder, "rev-parse", "--show-toplevel")
    commit = _output("git", "-C", folder, "rev-parse", "HEAD")
    if root is None or commit is None or not _output("git", "-C", folder, "ls-files", "--", "."):
        return GitState(commit=None, dirty=None)
    changes = _output(
        "git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"
    )
    return GitState(commit=commit, dirty=None if changes is None else bool(changes))


def package_versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the packages that take part in a run's numbers, and of others that are installed."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *others):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an optional one, or the library used from its source folder
            continue
    return versions


def describe_hardware(device: str | torch.device, native_steps: str | None = None) -> Hardware:
    """The machine this process runs on; GPU names only when `device` is a GPU. `native_steps`: see `Hardware`."""
    kind = torch.device(device).type
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if kind == "cuda" else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        device=kind, cpu=_cpu_name(), cores=available_cores(), memory_gb=round(memory / 1e9, 1), gpus=gpus,
        native_steps=native_steps,
    )  # fmt: skip


def available_cores() -> int:
    """The CPU cores this process may use by its affinity; a container's quota of CPU time is not seen."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_processes() -> int:
    """How many processes of this training run on this machine, as torchrun and `accelerate launch` tell each."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()
