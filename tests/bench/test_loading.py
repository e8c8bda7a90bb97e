"""The measurement of data loading loads what it says, the way training does, and its arithmetic is right."""

import json
import math

import numpy as np
import pandas as pd
import torch

from binaryvit.bench import loading
from binaryvit.cli import main


def test_the_photographs_are_decoded_for_each_batch_as_imagenet_is():
    data = loading.photographs()
    assert data.train.pixels is None, "they would be loaded from memory"
    files = data.train.encoded(range(64))
    assert len(set(files)) == 32 and all(file.startswith(b"\xff\xd8\xff") for file in files), "JPEG files"
    assert 90_000 < np.mean([len(file) for file in files]) < 130_000, "as large as ImageNet's"
    assert {image.size for image in data.train.images(range(3))} == {(500, 375)}


def test_every_pipeline_is_measured_alike_with_one_thread(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(loading.time, "perf_counter", lambda: next(clock))
    threads = torch.get_num_threads()
    measured = loading.measure_loading(image_size=32, images=33, repetitions=2)
    assert torch.get_num_threads() == threads
    assert list(measured["pipeline"]) == ["student", "teacher", "evaluation"] * 2, "interleaved"
    assert list(measured["repetition"]) == [0, 0, 0, 1, 1, 1]
    assert set(measured["images"]) == {64} and set(measured["images_per_second"]) == {64.0}


def test_cores_are_those_that_load_enough():
    measured = pd.DataFrame({"pipeline": ["a", "b"] * 3, "images_per_second": [100.0, 50.0, 90.0, 70.0, 120.0, 60.0]})
    table = loading.summarize_loading(measured, [300, 301])
    assert list(table["images/s"]) == [100, 60] and list(table["lowest"]) == [90, 50]
    assert list(table["cores for 300/s"]) == [3, 5] and list(table["cores for 301/s"]) == [4, math.ceil(301 / 60)]


def test_the_command_stores_every_repetition(tmp_path, capsys):
    folder = tmp_path / "deep"
    arguments = ["bench", "load", "--images", "1", "--repetitions", "2", "--needs", "1000", "--output", str(folder)]
    assert main(arguments) == 0
    assert len(pd.read_csv(folder / "load.repetitions.csv")) == 6
    assert list(pd.read_csv(folder / "load.csv")["pipeline"]) == ["student", "teacher", "evaluation"]
    identity = json.loads((folder / "load.json").read_text())
    assert identity["hardware"]["device"] == "cpu" and identity["repetitions"] == 2
    assert "cores for 1000/s" in capsys.readouterr().out
