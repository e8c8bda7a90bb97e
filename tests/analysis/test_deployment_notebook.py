"""The deployment notebook: from a stored run to a file, and what it says of it, checked against the file."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.executed_notebooks import execute, kernels_of_this_checkout, outputs
from helpers.places import ROOT

from binaryvit.analysis import deployment
from binaryvit.errors import BinaryViTError
from binaryvit.models.cost import cost
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.packed import load

NOTEBOOK = ROOT / "notebooks" / "deployment.ipynb"
RUN = ROOT / "results/smoke/runs/binaryvit_micro_patch2_32-seed0"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Executed as from notebooks/, with its default run, on few images."""
    folder = tmp_path_factory.mktemp("deployment")
    target = str(folder / "model.bvit")
    with kernels_of_this_checkout():
        document = execute(NOTEBOOK, folder / "out.ipynb", cwd=NOTEBOOK.parent, target=target, images=20, repetitions=3)
    return document, folder / "model.bvit"


@pytest.mark.slow
def test_the_file_it_writes_is_the_runs_model(executed):
    _, path = executed
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load(path)(images), load_inference_weights(RUN / "weights.safetensors")(images))


@pytest.mark.slow
def test_it_shows_the_bytes_of_the_file_and_of_the_table(executed):
    document, path = executed
    size, counted = path.stat().st_size, cost(load_inference_weights(RUN / "weights.safetensors")).bytes
    [table] = [text for text in outputs(document, "text/html") if "Bytes counted and stored" in text]
    assert f">{size:,}<" in table and f">{round(counted):,}<" in table
    finding = outputs(document, "text/markdown")[0]
    assert f"{size / 1e6:.3f} MB, {size / counted - 1:.1%} more than the {counted / 1e6:.3f} MB" in finding


@pytest.mark.slow
def test_it_finds_the_logits_equal(executed):
    document, _ = executed
    assert "The logits of all 20 images are the model's, bit for bit." in outputs(document, "text/markdown")


@pytest.mark.slow
def test_its_products_by_hand_are_those_of_the_words_it_shows(executed):
    document, _ = executed
    [table] = [text for text in outputs(document, "text/html") if "differing" in text]
    rows = re.findall(r"<td>([0-9a-f]{16})</td>\s*<td>([0-9a-f]{16})</td>\s*<td>(\d+)</td>\s*<td>(-?\d+)</td>", table)
    assert len(rows) == 4
    for activation, weight, differing, product in rows:
        assert (int(activation, 16) ^ int(weight, 16)).bit_count() == int(differing)
        assert int(product) == 64 - 2 * int(differing)


@pytest.mark.slow
def test_it_draws_the_time_of_each_part_and_names_the_longest(executed):
    document, _ = executed
    assert len(outputs(document, "image/png")) == 1
    finding = outputs(document, "text/markdown")[-1]
    assert re.search(r"one image takes \d+\.\d\d ms packed and \d+\.\d ms by the modules", finding)


def test_the_parts_are_those_of_the_model_and_add_up(tmp_path):
    deployed = deployment.deploy(RUN, tmp_path / "model.bvit")
    times = deployment.latency(deployed, repetitions=2)
    assert list(times["part"]) == [
        "stem", "stage 0, block 0", "stage 0, block 1", "merge into stage 1", "stage 1, block 0", "stage 1, block 1",
        "merge into stage 2", "stage 2, block 0", "norm and classifier",
    ]  # fmt: skip
    assert (times[["packed", "simulated"]] >= 0).all(axis=None) and (times.drop(columns="part").sum() > 0).all()


def test_a_difference_is_said_as_it_is():
    assert "48 of 50 images" in deployment.equality_finding(48, 50)


def test_the_longest_part_is_the_one_the_table_has():
    times = pd.DataFrame({"part": ["stem", "block"], "packed": [1.0, 3.0], "simulated": [10.0, 30.0]})
    finding = deployment.latency_finding(times, 2, "a CPU", "AVX2")
    assert "4.00 ms packed and 40.0 ms by the modules, 10 times as long" in finding
    assert "block, takes 75% of the packed time" in finding and "2 threads of a CPU" in finding


def test_a_run_that_is_not_there_is_refused():
    with pytest.raises(BinaryViTError, match="no_such_run"):
        deployment.deploy("results/smoke/runs/no_such_run", Path("model.bvit"))
