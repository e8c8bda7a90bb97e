"""Measurements are made once, reused while they hold, and never passed off as something they are not."""

import json
import shutil

import pandas as pd
import pytest
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import store, stored_study

from binaryvit.analysis.measurements import measured, stored_ones_only
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.studies.study import load_study


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return stored_study(tmp_path_factory.mktemp("studies") / "small")


class Norms:
    """A measurement: the norms of a run's parameters, none for the teacher. It notes which runs it was made for."""

    def __init__(self, folder):
        self.study, self.made, self.error = load_study(folder), [], None

    def __call__(self, run):
        if self.error:
            raise BinaryViTError(self.error)
        self.made.append(run.id)
        parameters = run.model().named_parameters() if run.is_binary_transformer else []
        rows = [{"layer": name, "norm": parameter.norm().item()} for name, parameter in parameters]
        return pd.DataFrame(rows, columns=["layer", "norm"])

    def measured(self, version=1, settings=None, ids=None, write=False):
        self.made.clear()
        opened = OpenStudy(self.study, ids, write)
        return measured(opened, "norms", version, settings or {"images": (1, 2)}, opened.runs(), self)

    def file(self, run, ending):
        return self.study.output / "measurements" / "norms" / f"{run}.{ending}"


@pytest.fixture
def norms(original, tmp_path):
    shutil.copytree(original.output, tmp_path / "small")
    return Norms(tmp_path / "small")


def test_a_measurement_is_made_once_and_read_back_equal(norms):
    first = norms.measured()
    assert norms.made == [TEACHER, BASELINE, PYRAMID]
    assert [*first.columns] == ["run", "layer", "norm"] and first["run"].unique().tolist() == [BASELINE, PYRAMID]
    model = dict(stored_runs(norms.study)[1].model().named_parameters())
    mine = first[first["run"] == BASELINE]
    for layer, norm in zip(mine["layer"], mine["norm"], strict=True):
        assert norm == float(f"{model[layer].norm().item():.6g}")
    pd.testing.assert_frame_equal(norms.measured(), first)
    assert norms.made == []
    only = norms.measured(ids=[PYRAMID])
    pd.testing.assert_frame_equal(only, first[first["run"] == PYRAMID].reset_index(drop=True))


def test_the_note_names_what_it_was_made_from(norms):
    norms.measured()
    note = json.loads(norms.file(BASELINE, "json").read_text())
    record = stored_runs(norms.study, [BASELINE])[0].record
    assert note["source"]["key"] == record.key.model_dump()
    assert note["source"]["settings"] == {"images": [1, 2]} and note["source"]["version"] == 1
    assert len(note["source"]["weights"]) == 64 and note["files"].keys() == {f"{BASELINE}.csv"}


def test_other_code_measures_again(norms):
    norms.measured()
    norms.measured(version=2)
    assert len(norms.made) == 3
    norms.measured(version=2)
    assert not norms.made


def test_other_settings_measure_for_once_and_leave_what_is_stored(norms):
    before = norms.measured()
    stored = {path: path.read_bytes() for path in norms.file(BASELINE, "csv").parent.iterdir()}
    pd.testing.assert_frame_equal(norms.measured(settings={"images": [1, 3]}), before)
    assert len(norms.made) == 3
    assert {path: path.read_bytes() for path in norms.file(BASELINE, "csv").parent.iterdir()} == stored
    pd.testing.assert_frame_equal(norms.measured(settings={"images": [1, 3]}), before)
    assert not norms.made, "what was made for this time is kept as long as the process"
    norms.measured()
    assert not norms.made
    norms.measured(settings={"images": [1, 3]}, write=True)
    assert len(norms.made) == 3
    assert {path: path.read_bytes() for path in norms.file(BASELINE, "csv").parent.iterdir()} != stored
    norms.measured(settings={"images": [1, 3]})
    assert not norms.made


def test_other_weights_record_or_file_measure_that_run_again(norms):
    before = norms.measured()
    run = norms.study.runs[1]
    fingerprint = stored_runs(norms.study)[0].record.key.data
    store(norms.study, run, fingerprint)  # the same key, other random weights
    after = norms.measured()
    assert norms.made == [BASELINE] and not after.equals(before)

    file = norms.file(PYRAMID, "csv")
    file.write_text(file.read_text().replace("norm1", "norm9", 1))
    pd.testing.assert_frame_equal(norms.measured(), after)
    assert norms.made == [PYRAMID]

    norms.file(PYRAMID, "csv").unlink()
    pd.testing.assert_frame_equal(norms.measured(), after)
    norms.file(TEACHER, "json").write_text("{}")
    with pytest.raises(BinaryViTError, match="is not a note on where files come from"):
        norms.measured()


def test_without_the_data_stored_ones_serve_and_others_are_a_sentence(norms):
    norms.error = "The data set is not on this machine."
    with pytest.raises(
        BinaryViTError, match=f"'norms' of the run {TEACHER} .*not stored.*made here: The data set is not"
    ):
        norms.measured()
    assert not (norms.study.output / "measurements").exists()
    norms.error = None
    first = norms.measured()
    norms.error = "The data set is not on this machine."
    pd.testing.assert_frame_equal(norms.measured(), first)
    with pytest.raises(BinaryViTError, match="made with another version"):
        norms.measured(version=2)


def test_looking_only_makes_nothing(norms):
    with stored_ones_only(), pytest.raises(BinaryViTError, match=r"not stored.*execute the study's analysis again"):
        norms.measured()
    assert norms.made == []
    first = norms.measured()
    with stored_ones_only():
        pd.testing.assert_frame_equal(norms.measured(), first)


def test_nothing_to_measure_is_a_sentence(norms):
    with pytest.raises(BinaryViTError, match="'norms' holds nothing for deit"):
        norms.measured(ids=[TEACHER])
    with pytest.raises(BinaryViTError, match="needs at least one run"):
        measured(OpenStudy(norms.study), "norms", 1, {}, [], norms)
