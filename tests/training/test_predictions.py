"""Predictions are stored as they are, and read only as a run wrote them."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from binaryvit.errors import BinaryViTError
from binaryvit.records.predictions import read_predictions, write_predictions


def test_predictions_of_many_classes_are_stored_as_they_are(tmp_path):
    many = np.array([0, 255, 256, 999])
    write_predictions(tmp_path, many, many[::-1])
    stored = load_file(tmp_path / "predictions.safetensors")
    assert stored["predicted"].tolist() == many.tolist() and stored["label"].tolist() == many[::-1].tolist()


def test_predictions_of_another_file_are_refused(finished, tmp_path):
    shutil.copytree(finished / "student", tmp_path / "run")
    file = tmp_path / "run" / "predictions.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged, reason in ((bytes(content), "changed after"), (bytes(10_000), "is not what a run writes")):
        file.write_bytes(damaged)
        with pytest.raises(BinaryViTError, match=rf"predictions\.safetensors cannot be used: it (was )?{reason}"):
            read_predictions(tmp_path / "run")
    with pytest.raises(BinaryViTError, match="no predictions of a finished run"):
        read_predictions(tmp_path)
