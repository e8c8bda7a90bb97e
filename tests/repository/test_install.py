"""The installation script, played through with a stand-in for Python that notes what it was asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.places import ROOT

SCRIPT = ROOT / ".ci" / "install"
TOOLS = ["sh", "awk", "cat", "chmod", "cksum", "cp", "df", "dirname", "du", "mkdir", "rm", "uname"]

# What the script asks of a Python: does it run, which version, can it make environments; to make one; and to run pip.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *platform*) echo "${FAKE_VERSION:-3.11.7}" ;;
    *ensurepip*) exit "${FAKE_NO_ENSUREPIP:-0}" ;;
    "-m venv .venv") mkdir -p .venv/bin .venv/lib/python3.11/site-packages && cp "$0" .venv/bin/python ;;
    "-m pip "*)
        echo "$*" >>pip.log
        case ${FAKE_PIP:-works} in
            fails) exit 1 ;;
            killed) kill -9 $PPID ;;
        esac ;;
esac
"""


class Checkout:
    """A folder with the script, a lock and a pyproject.toml, and a PATH with the script's tools alone."""

    def __init__(self, folder: Path) -> None:
        self.tools = folder / "tools"
        self.tools.mkdir(parents=True)
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool))
        self.root = folder / "a checkout"
        (self.root / ".ci").mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / ".ci" / "install")
        (self.root / "requirements.lock").write_text("six==1.17.0\n")
        (self.root / "pyproject.toml").write_text("[project]\n")

    def command(self, name: str, text: str) -> Path:
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def install(self, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", ".ci/install"],
            cwd=self.root,
            env={"PATH": str(self.tools), "TMPDIR": str(self.root)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def pip_calls(self) -> list[str]:
        """What pip was asked for since the last call."""
        log = self.root / "pip.log"
        calls = [line.split("--no-input ")[1] for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return calls


EVERYTHING = [
    "install --no-deps --requirement requirements.lock",
    "install --no-deps --no-build-isolation --editable .",
    "check",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    checkout.command("python3.11", FAKE_PYTHON)
    checkout.command(
        "df",
        "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available Capacity Mounted on'\n"
        'echo "/dev/a disk 264212084 1 ${FAKE_FREE_KB:-90000000} 28% /a mount"\n',
    )
    return checkout


def test_installs_once(checkout: Checkout):
    assert checkout.install().returncode == 0
    assert checkout.pip_calls() == EVERYTHING
    again = checkout.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.pip_calls() == []


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_change_of_the_packages_is_installed(checkout: Checkout, changed: str):
    checkout.install()
    checkout.pip_calls()
    with open(checkout.root / changed, "a") as file:
        file.write("# more\n")
    assert checkout.install().returncode == 0
    assert checkout.pip_calls() == EVERYTHING


@pytest.mark.parametrize("interruption", ["fails", "killed"])
def test_an_interrupted_installation_is_continued(checkout: Checkout, interruption: str):
    interrupted = checkout.install(FAKE_PIP=interruption)
    assert interrupted.returncode != 0
    if interruption == "fails":
        assert "the same command goes on from here" in interrupted.stderr
    assert checkout.pip_calls() == EVERYTHING[:1]
    packages = checkout.root / ".venv/lib/python3.11/site-packages"
    whole, cut_off = packages / "whole-1.dist-info", packages / "cut_off-1.dist-info"
    whole.mkdir()
    cut_off.mkdir()
    (whole / "RECORD").touch()
    assert checkout.install().returncode == 0
    assert checkout.pip_calls() == EVERYTHING
    assert whole.exists() and not cut_off.exists()


def test_an_environment_that_was_moved_is_made_again(checkout: Checkout):
    checkout.install()
    (checkout.root / ".venv" / "old").touch()
    checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    assert checkout.install().returncode == 0
    assert not (checkout.root / ".venv" / "old").exists()


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout):
    checkout.install()
    (checkout.root / ".venv/bin/python").write_text("#!/no/such/python\n")
    assert checkout.install().returncode == 0
    assert checkout.install().stdout == ""


def test_somebody_elses_environment_is_left_alone(checkout: Checkout):
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "precious").write_text("mine")
    refused = checkout.install()
    assert refused.returncode == 1
    assert "was not made by this script. Move it away" in refused.stderr
    assert (checkout.root / ".venv" / "precious").read_text() == "mine"


def test_a_python_too_old_is_named(checkout: Checkout):
    (checkout.tools / "python3.11").rename(checkout.tools / "python3")
    refused = checkout.install(FAKE_VERSION="3.9.2")
    assert refused.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed, but python3 is Python 3.9.2." in refused.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_missing_python_is_said(checkout: Checkout):
    (checkout.tools / "python3.11").unlink()
    refused = checkout.install()
    assert refused.returncode == 1
    assert "is needed, but none of python3.11 python3.12 python3.13 python3 python is here." in refused.stderr


def test_a_command_that_only_looks_like_python_is_passed_over(checkout: Checkout):
    (checkout.tools / "python3.11").rename(checkout.tools / "python3.12")
    checkout.command("python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    done = checkout.install(FAKE_VERSION="3.12.1")
    assert done.returncode == 0
    assert "Making .venv with python3.12 (3.12.1)" in done.stdout


def test_the_named_python_is_the_only_one_tried(checkout: Checkout, tmp_path: Path):
    named = tmp_path / "my python"
    (checkout.tools / "python3.11").rename(named)
    checkout.command("python3.11", "#!/bin/sh\nexit 1\n")
    assert checkout.install(PYTHON=str(named)).returncode == 0
    shutil.rmtree(checkout.root / ".venv")
    assert (
        f"is needed, but none of {tmp_path / 'nowhere'} is here."
        in checkout.install(PYTHON=str(tmp_path / "nowhere")).stderr
    )


def test_another_python_than_the_environments_is_not_ignored(checkout: Checkout):
    checkout.install()
    named = str(checkout.tools / "python3.11")
    assert checkout.install(PYTHON=named).returncode == 0
    checkout.command("python3.12", FAKE_PYTHON.replace("3.11.7", "3.12.1"))
    refused = checkout.install(PYTHON="python3.12")
    assert refused.returncode == 1
    assert ".venv was made with Python 3.11.7, and python3.12 is Python 3.12.1. 'make clean' first" in refused.stderr


def test_a_python_that_cannot_make_environments_is_said(checkout: Checkout):
    refused = checkout.install(FAKE_NO_ENSUREPIP="1")
    assert refused.returncode == 1
    assert "cannot make virtual environments" in refused.stderr
    assert "apt install python3.11-venv" in refused.stderr


def test_a_full_disk_is_said_before_anything_is_written(checkout: Checkout):
    refused = checkout.install(FAKE_FREE_KB="300000")
    assert refused.returncode == 1
    assert "The disk is too full: .venv needs" in refused.stderr and "only 292 MB are free" in refused.stderr
    assert not (checkout.root / ".venv").exists()


def test_the_script_runs_on_the_real_df(checkout: Checkout):
    (checkout.tools / "df").unlink()
    (checkout.tools / "df").symlink_to(shutil.which("df"))
    space = shutil.disk_usage(checkout.root).free / 2**20
    done = checkout.install()
    assert (done.returncode == 0) == (space > 7000) or abs(space - 7000) < 500, done.stderr


def test_the_script_is_executable():
    assert os.access(SCRIPT, os.X_OK)
