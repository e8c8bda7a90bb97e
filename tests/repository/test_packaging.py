"""What packaging promises: one set of versions everywhere, and a repository without what does not belong in it."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from helpers.places import ROOT
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import binaryvit

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DIRECT = RUNTIME + [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
# Named as they are imported; installed by those alone who ask for them.
OPTIONAL = {Requirement(line).name for line in PROJECT["optional-dependencies"]["bench"]}
LOCK_LINES = [
    line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
]
LOCK = [Requirement(line) for line in LOCK_LINES]

PLATFORMS = {
    "linux x86-64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux arm": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
POSIX = {"os_name": "posix", "implementation_name": "cpython", "platform_python_implementation": "CPython"}


def pins(requirements: list[Requirement], environment: dict[str, str] | None = None) -> dict[str, str]:
    """Maps the name of each package that `environment` (default: this one) installs to its exact version."""
    found: dict[str, str] = {}
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is listed twice for the same environment."
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and "*" not in specifier.version, (
                f"{requirement} is not an exact version."
            )
            found[name] = specifier.version
    return found


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("This is no git checkout, so nothing is tracked.")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def test_environment_yml_has_the_packages_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    listed = [line for line in packages["pip"] if not line.startswith("--")]
    assert pins([Requirement(line) for line in listed]) == pins(DIRECT)
    assert {line for line in packages["pip"] if line.startswith("--")} == {
        "--constraint requirements.lock",
        "--editable .",
    }
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])


def test_the_lock_has_the_direct_packages_at_the_same_versions():
    direct, locked = pins(DIRECT), pins(LOCK)
    assert direct == {name: locked.get(name) for name in direct}, "Run `make lock`."


def test_the_lock_is_everything_the_installed_packages_ask_for_and_no_more():
    locked = pins(LOCK)
    needed: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(requirement.name), "") for requirement in DIRECT]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        needed.add(name)
        assert metadata.version(name) == locked.get(name), (
            f"The lock does not have the installed {name}; run `make lock`."
        )
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                assert locked.get(canonicalize_name(requirement.name), "none") in requirement.specifier
                waiting += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]
    assert set(locked) == needed, "The lock has packages nothing asks for; run `make lock`."


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_lock_fits_every_platform(platform: str, python: str):
    assert python in SpecifierSet(PROJECT["requires-python"])
    version = {"python_version": python, "python_full_version": f"{python}.9"}
    locked = pins(LOCK, POSIX | PLATFORMS[platform] | version)
    assert pins(DIRECT).items() <= locked.items()
    for_cuda = {name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert bool(for_cuda) == platform.startswith("linux")
    assert ("appnope" in locked) == (platform == "macos")


def test_the_lock_names_no_source_of_packages():
    exact = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][a-z0-9.]*( ; [^@]+)?")
    assert [line for line in LOCK_LINES if not exact.fullmatch(line)] == []


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"binaryvit", "helpers"}


@pytest.mark.parametrize("folder, declared", [("binaryvit", RUNTIME), ("notebooks", RUNTIME), ("tests", DIRECT)])
def test_what_is_imported_is_declared(folder: str, declared: list[Requirement]):
    sources = [path.read_text() for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / folder).glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        sources += [re.sub(r"^\s*[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE) for cell in cells]
    assert sources, f"{folder} holds no code."
    own = {path.stem for path in (ROOT / folder).glob("*.py")} if folder == "tests" else set()
    distributions = metadata.packages_distributions()
    missing = {
        name
        for name in set().union(*map(imported_packages, sources)) - own - OPTIONAL
        if not {canonicalize_name(distribution) for distribution in distributions.get(name, [])} & pins(declared).keys()
    }
    assert missing == set(), "Add these to pyproject.toml and environment.yml, then run `make lock`."


def test_every_direct_package_has_a_reason():
    reasons = (ROOT / "docs/dependencies.md").read_text().lower()
    assert [requirement.name for requirement in DIRECT if requirement.name not in reasons] == []


def test_the_command_line_exists():
    module, function = PROJECT["scripts"]["binaryvit"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_notebooks_run_on_the_kernel_of_this_environment():
    kernel = KernelSpecManager().get_kernel_spec("python3")
    assert Path(kernel.resource_dir).is_relative_to(sys.prefix)


def test_the_makefile_has_the_targets_people_are_told_of():
    targets = {"help", "install", "reproduce", "figures", "test", "check-gpu", "lint", "format", "lock", "clean"}
    listed = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {line.split()[1] for line in listed.splitlines() if line.startswith("  make ")} == targets
    planned = subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "binaryvit reproduce results/smoke/study.yaml" in planned
    trained = [path.parent.name for path in ROOT.glob("results/*/runs")]
    assert "smoke" in trained and all(f"binaryvit figures results/{study}\n" in planned for study in trained)
    assert "make test" in (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(r"make .*\btest\b", (ROOT / ".ci/run").read_text())
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_citation_changelog_and_library_are_of_this_version():
    assert binaryvit.__version__ == PROJECT["version"]
    assert re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert "2306.16678" in str(citation["references"])


def test_no_large_file_is_tracked():
    assert {path.name: path.stat().st_size for path in tracked_files() if path.stat().st_size > 5_000_000} == {}


def test_no_tracked_text_names_a_folder_of_one_machine():
    machine = re.compile(r"(?<![\w.~:/-])/(?:work|home|root|Users)/\w[^\s\"']*")
    places = {str(ROOT), str(Path.home()) + "/", sys.prefix} - {"/", "//", "/usr", "/usr/local"}
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found = machine.findall(text) + [place for place in places if place in text]
        assert found == [], path.relative_to(ROOT)


def test_results_stay_small():
    sizes = {path: path.stat().st_size for path in tracked_files() if path.is_relative_to(ROOT / "results")}
    assert sum(sizes.values()) < 60e6


@pytest.mark.parametrize(
    "path, ignored",
    [
        ("results/reproduced/smoke/runs/a/run.json", True),
        ("results/smoke/runs/a/checkpoint.safetensors", True),
        (".venv/bin/python", True),
        ("results/smoke/runs/a/run.json", False),
        ("results/smoke/runs/a/weights.safetensors", False),
        ("results/recipe/runs/a/weights.safetensors", True),
        ("results/cifar10/runs/cls_w32a32-seed0/weights.safetensors", True),
        ("results/cifar10/runs/cls_w32a32-seed0/predictions.safetensors", False),
        ("results/cifar10/runs/binaryvit_w32a32-seed0/weights.safetensors", False),
        ("requirements.lock", False),
    ],
)
def test_git_ignores_checkpoints_and_keeps_records(path: str, ignored: bool):
    tracked_files()  # skips outside a git checkout
    done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1)
