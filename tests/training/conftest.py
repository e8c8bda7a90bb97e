"""A finished run that the tests of training read, and copy before they change it."""

from pathlib import Path

import pytest
from helpers.training_setup import student, teacher

from binaryvit.training.train import train_in_process as train


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A student distilled from a teacher that is a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    train(teacher(weights_dtype="float16"), folder / "teacher")
    train(student(teacher=str(folder / "teacher")), folder / "student", study="a study", run_id="an id")
    return folder
