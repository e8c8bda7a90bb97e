"""A drawing writes the same files from the same numbers, and beside them what they were made from."""

import hashlib
import json

import pandas as pd
import pytest
from helpers.run_ids import BASELINE, PYRAMID
from helpers.stored_study import stored_study
from matplotlib.figure import Figure

from binaryvit.analysis import figure_files
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy
from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return stored_study(tmp_path_factory.mktemp("studies") / "small")


def drawing(study, values=(1.0, 3.0), runs=(BASELINE, PYRAMID)):
    table = pd.DataFrame({"step": [0, 1], "value": values})

    @styled
    def draw():
        figure = Figure(figsize=(DOUBLE_COLUMN, 2))
        figure.add_subplot().plot(table["step"], table["value"])
        return figure

    return Drawing(OpenStudy(study), "line", {"line": table}, draw, runs, f"It rises to {max(values)}.")


def test_files_and_their_note(study):
    paths = drawing(study).write()
    assert [path.relative_to(study.output).as_posix() for path in paths] == ["figures/line.pdf", "figures/line.png"]
    note = json.loads((study.output / "figures" / "line.json").read_text())
    digest = hashlib.sha256(b"step,value\n0,1\n1,3\n").hexdigest()
    source = {"study": "small", "runs": {BASELINE: "0" * 40, PYRAMID: "0" * 40}, "inputs": {"line": digest}}
    assert note["source"] == source
    assert note["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert [figure_files.read_provenance(path) for path in paths] == [source, source]


def test_making_it_twice_gives_the_same_bytes_and_other_numbers_others(study):
    first, second = ([path.read_bytes() for path in drawing(study).write()] for _ in range(2))
    assert first == second
    assert [path.read_bytes() for path in drawing(study, (1.0, 2.0)).write()] != first


def test_numbers_count_with_six_digits(study):
    source = drawing(study).source()
    assert drawing(study, (1.0, 3.0000001)).source() == source
    assert drawing(study, (1.0, 3.0001)).source() != source


def test_showing_it(study):
    picture, finding = drawing(study).show()
    assert picture.data.startswith(b"\x89PNG") and finding.data == "It rises to 3.0."
    assert drawing(study).show()[0].data == picture.data


def test_a_run_of_another_study_is_refused(study):
    with pytest.raises(BinaryViTError, match="names resnet-seed0, which is no finished run of small"):
        drawing(study, runs=("resnet-seed0",)).write()
