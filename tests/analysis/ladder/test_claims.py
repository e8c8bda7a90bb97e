"""What a study says about the paper's claims."""

import shutil

import pytest
from helpers.ladder_study import MICRO, finish, write_study

from binaryvit.analysis.ladder.claims import claims
from binaryvit.analysis.measurements import measurement_path, note_path
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.records.notes import Note
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import load_study

CLAIMS = """
Claim: [{{claim: It helps, test: one against the other, models: [{0}, {1}]}}]
Control:
  - {{claim: This too, test: the same, models: [{2}, {3}]}}
  - {{claim: And this, test: as well, models: [{4}, {5}]}}
  - {{claim: Twice as much, test: of both, models: [{0}, {1}], more_than: [{3}, {4}]}}
"""


def test_each_outcome_follows_its_interval(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS.format(*MICRO[1:]))
    study = write_study(tmp_path, seeds=(0, 1))
    assert claims(study).count("| - | - | not run yet |") == 4
    finish(study, dict(zip(MICRO, (80, 50, 60, 60, 60.25, 61, 40), strict=True)))
    measured = measurement_path(study, "values_read", f"{MICRO[1]}-seed0")
    measured.parent.mkdir(parents=True)
    measured.write_text("tokens,median\n64,14.5\n")
    key = read_record(study.runs[1].folder).key.model_dump()
    Note.of({"key": key}, [measured]).write(note_path(measured))
    lines = claims(load_study(tmp_path)).splitlines()
    assert "seeds 0, 1" in lines[0]
    assert "| It helps | one against the other | +10.00 (+7.13 to +12.87) | 2 | holds |" in lines
    this, and_this, twice = lines[-12:-9]
    assert this.startswith("| This too | the same | +0.25 (-0.") and this.endswith("| 2 | not resolved |")
    assert and_this.endswith("| 2 | fails |")
    assert twice.startswith("| Twice as much | of both | +9.25 (+") and twice.endswith("| 2 | holds |")
    assert lines[-6].startswith(f"| {variant_style(MICRO[1]).label} | 14.5 | 50.50 ± ")
    assert lines[-1].startswith(f"| {variant_style(MICRO[6]).label} | - | 40.50 ± ")
    measured.write_text(measured.read_text().replace("14.5", "15.5"))
    assert "| - | 50.50 ± " in claims(load_study(tmp_path)), "what was changed by hand is not shown"


def test_the_spread_of_the_steps_is_pooled_by_their_degrees_of_freedom(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS.format(*MICRO[1:]))
    study = write_study(tmp_path, seeds=(0, 1, 2))
    finish(study)
    for run in study.runs:
        if run.config.variant == MICRO[2]:  # the steps to it and from it get the variance 1, all others have 0
            record = read_record(run.folder)
            top1 = record.weights.top1 + run.config.seed
            record.model_copy(update={"weights": record.weights.model_copy(update={"top1": top1})}).write(run.folder)
        if (run.config.variant, run.config.seed) == (MICRO[6], 2):
            shutil.rmtree(run.folder)
    # four steps of three seeds and one of two: 9 degrees of freedom, and a sum of squares of 4
    assert "a step of the ladder varies by 0.67 points (pooled standard deviation)." in claims(load_study(tmp_path))


def test_one_seed_is_named_in_the_outcome(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS.format(*MICRO[1:]))
    finish(write_study(tmp_path), dict(zip(MICRO, (80, 50, 60, 60, 60.25, 61, 40), strict=True)))
    said = claims(load_study(tmp_path))
    assert said.count("| 1 | holds for one seed |") == 2 and said.count("| 1 | fails for one seed |") == 1
    assert said.count("| 1 | not resolved |") == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [("Claim: 3", "does not list claims"), (CLAIMS.format("a", *MICRO[1:6]), "names a, which the study tiny has not")],
)
def test_what_is_no_list_of_claims_about_the_study_is_refused(tmp_path, content, named):
    (tmp_path / "claims.yaml").write_text(content)
    with pytest.raises(BinaryViTError, match=named):
        claims(write_study(tmp_path))
