"""Tables hold the records' own numbers, lead back to them, and refuse what is of another scale."""

import csv
import hashlib
import io
import json
import math
import re
import shutil
from functools import partial

import pandas as pd
import pytest
import timm
from helpers.ladder_study import TOP1, finish, write_study
from helpers.places import ROOT
from helpers.records import record_of

from binaryvit.analysis.ladder import findings, published, tables
from binaryvit.analysis.ladder import measure as ladder
from binaryvit.analysis.stored import OpenStudy
from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.models.cost import cost
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.records.run_record import Failure, RunResult, read_record
from binaryvit.studies.rows import read_rows
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, load_study

MICRO, SMALL = LADDER["micro"], LADDER["small"]
PUBLISHED = ROOT / "results" / "published.csv"
ACCURACY, STEP = "top-1 (%)", "difference"


@pytest.fixture
def make_study(tmp_path):
    """Writes a study of the ladder and returns it resolved."""
    return partial(write_study, tmp_path)


@pytest.fixture
def study(make_study):
    return make_study()


def ablation(study):
    return tables.ablation(OpenStudy(study))


def rewrite(study, variant, **changes):
    """Writes one run's record again with changes."""
    (run,) = (run for run in study.runs if run.config.variant == variant)
    record_of(study, run, **changes).write(run.folder)


def test_runs_from_before_a_setting_existed_share_a_table_with_later_ones(study):
    finish(study)
    record = read_record(study.runs[1].folder)
    before = {name: value for name, value in record.config.items() if name != "latent_scale"}
    record.model_copy(update={"config": before}).write(study.runs[1].folder)
    assert not ablation(study).numbers["top1"].isna().any()


def column(table, name):
    return dict(zip(table.numbers["variant"], table.text[name], strict=True))


def test_the_ablation_holds_the_records_numbers_and_the_models_costs(study):
    finish(study)
    table = ablation(study)
    numbers = table.numbers.set_index("variant")
    assert list(numbers.index) == list(MICRO)
    assert numbers["top1"].to_dict() == TOP1
    for variant in MICRO:
        counted = cost(timm.create_model(variant, num_classes=10))
        assert numbers.loc[variant, list(tables._COSTS)].tolist() == [getattr(counted, name) for name in tables._COSTS]
    assert [text.split()[0] for text in table.text[STEP]] == [
        *("-", "-33.00", "+3.00", "+3.50", "-0.25", "+8.75", "+2.00")
    ]
    # One image of 400: 0.25 points, whose standard error is 0.25 points as well.
    assert column(table, STEP)[MICRO[4]] == "-0.25 (-0.74 to +0.24), not resolved"
    assert numbers.loc[MICRO[4], ["top1_difference_low", "top1_difference_high"]].round(2).tolist() == [-0.74, 0.24]
    assert table.text["variant"].tolist()[1:3] == ["ReActNet-DeiT (baseline)", "+ average pooling"]
    assert "digits, 32x32 pixels, 10 classes, 400 evaluation images, 6 epochs, seed 0" in table.caption


def test_costs_are_those_of_the_instance(make_study):
    study = make_study(recipe="{epochs: 6, model_args: {activation_bits: 32}}", names=(MICRO[0], MICRO[5]))
    (row,) = (row for row in read_rows(study) if row.variant == MICRO[5])
    assert row.model_cost.bops == cost(timm.create_model(MICRO[5], activation_bits=32)).bops
    assert row.model_cost.bops != cost(timm.create_model(MICRO[5])).bops


def test_controls_stay_out_of_the_ladders_table(make_study, tmp_path):
    study = make_study(names=MICRO[:6])
    finish(study)
    before = ablation(study)
    text = (tmp_path / "study.yaml").read_text()
    row = f"{{variant: {MICRO[5]}, id: real, recipe: {{model_args: {{weight_bits: 32, activation_bits: 32}}}}}}"
    (tmp_path / "study.yaml").write_text(f"{text}\ncontrols: [{row}]\n")
    study = load_study(tmp_path)
    assert study.runs[-1].bits == (32, 32)
    data = record_of(study, study.runs[-1]).data.model_copy(update={"eval_images": 400})
    record_of(study, study.runs[-1], data=data).write(study.runs[-1].folder)
    again = ablation(study)
    assert again.text.equals(before.text) and again.caption == before.caption and again.finding == before.finding
    assert [row.label for row in read_rows(study)][-1] == "real"
    assert ladder.accuracy_against_operations(OpenStudy(study)).runs == tuple(run.id for run in study.runs[:-1])


def test_another_architecture_is_drawn_next_to_the_ladder(make_study):
    study = make_study(controls="[{variant: reactresnet_micro_patch2_32, id: binary_resnet, label: binary ResNet}]")
    finish(study, TOP1 | {"reactresnet_micro_patch2_32": 90.0})
    drawing = ladder.accuracy_against_operations(OpenStudy(study))
    assert drawing.inputs["points"]["label"].tolist()[-1] == "binary ResNet" and len(drawing.runs) == len(MICRO) + 1
    assert drawing.draw().get_suptitle().startswith("The ladder's binary models reach 46.0 to 63.0% with")
    assert ablation(study).numbers["variant"].tolist() == list(MICRO)


def test_several_seeds_give_mean_deviation_and_number(make_study):
    study = make_study(seeds=(0, 1, 3))
    finish(study)
    table = ablation(study)
    accuracy = column(table, ACCURACY)
    assert accuracy[MICRO[0]] == "79.00"  # one teacher serves all seeds
    assert accuracy[MICRO[1]] == "47.33 ± 1.53 (n = 3)"  # 46, 47, 49
    assert "6 epochs, seeds 0, 1, 3 (teacher: 6 epochs, seed 0)" in table.caption
    assert "standard deviation" in table.caption and "interval over images and seeds" in table.caption
    shutil.rmtree(study.output / "runs" / f"{MICRO[1]}-seed3")
    table = ablation(study)
    assert column(table, ACCURACY)[MICRO[1]] == "46.50 ± 0.71 (n = 2) (1 not run)"
    assert column(table, STEP)[MICRO[2]].endswith(", n = 2") and ", n =" not in column(table, STEP)[MICRO[3]]
    assert table.numbers["top1_difference_seeds"].tolist() == [0, 2, 2, 3, 3, 3, 3]


def test_of_planned_seeds_only_the_finished_ones_count(make_study):
    """Whether nobody trains the others or somebody does now: the same table."""
    study = make_study(seeds=(0, 1, 3))
    finish(study)
    for run in study.runs:
        if run.config.seed:
            shutil.rmtree(run.folder)
    table = ablation(study)
    assert "6 epochs, seed 0 of 3 (teacher: 6 epochs, seed 0)" in table.caption
    assert "interval over images." in table.caption and "One seed" in table.caption
    with hold(study.runs[-1].lock) as descriptor:
        assert descriptor is not None and plan(study)[-1].state is State.RUNNING
        assert ablation(study).contents() == table.contents()


def test_what_was_not_run_failed_or_is_stale_says_so(study):
    finish(study, skip=MICRO[3:5])
    (failed,) = (run for run in study.runs if run.config.variant == MICRO[3])
    Failure(error="The loss is not finite.", time="2025-01-02T00:00:00Z").write(failed.folder)
    finish(study, skip=MICRO[:6], training_version=0)
    table = ablation(study)
    accuracy, step = column(table, ACCURACY), column(table, STEP)
    assert (accuracy[MICRO[3]], accuracy[MICRO[4]]) == ("failed", "not run")
    assert accuracy[MICRO[6]] == "63.00 (stale)"
    assert step[MICRO[3]] == step[MICRO[4]] == step[MICRO[5]] == step[MICRO[6]] == "-"
    drawing = ladder.accuracy_against_operations(OpenStudy(study))
    assert drawing.inputs["points"]["variant"].tolist() == [*MICRO[:3], MICRO[5]]
    assert drawing.runs == tuple(f"{variant}-seed0" for variant in (*MICRO[:3], MICRO[5]))
    states = tables.states(study).set_index("run")
    assert states.loc[failed.id].tolist() == ["failed", "The loss is not finite."]


def test_a_stale_value_of_another_scale_is_not_shown(study, tmp_path):
    finish(study)
    longer = (tmp_path / "study.yaml").read_text().replace("epochs: 6", "epochs: 7")
    (tmp_path / "study.yaml").write_text(longer)
    assert set(ablation(load_study(tmp_path)).text[ACCURACY]) == {"stale"}


def test_a_damaged_record_is_stale_without_a_number(study):
    finish(study)
    (study.runs[1].folder / "run.json").write_text("{")
    assert column(ablation(study), ACCURACY)[MICRO[1]] == "stale"


def test_a_study_without_any_run_has_its_table(study):
    table = ablation(study)
    assert set(table.text[ACCURACY]) == {"not run"}
    assert table.numbers["parameters"].gt(1e6).all()
    assert "no run finished yet" in table.caption
    assert ladder.accuracy_against_operations(OpenStudy(study)) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label": "other digits"}, "data is"),
        ({"eval_images": 300}, "evaluation images is 400 .* and 300"),
        ({"eval_split": "validation"}, "evaluation split"),
        ({"num_classes": 11}, "classes"),
    ],
)
def test_runs_of_different_scales_are_refused(study, changes, named):
    finish(study)
    data = record_of(study, study.runs[0]).data.model_copy(update={"eval_images": 400} | changes)
    rewrite(study, MICRO[6], data=data)
    with pytest.raises(BinaryViTError, match=named) as caught:
        ablation(study)
    assert f"{MICRO[6]}-seed0" in str(caught.value)


def test_another_fingerprint_with_the_right_key_is_refused(study):
    finish(study)
    rewrite(study, MICRO[3], data=record_of(study, study.runs[0], fingerprint="e" * 64).data)
    with pytest.raises(BinaryViTError, match="fingerprint of the data"):
        ablation(study)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("epochs: 9", "epochs is 6 .* and 9"),
        ("image_size: 64", "image size is 32 .* and 64"),
        ("learning_rate: 0.1", "learning_rate"),
        ("eval_crop: 1.0", "evaluation crop"),
    ],
)
def test_variants_of_different_recipes_are_refused(make_study, tmp_path, setting, named):
    make_study()
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(
        text.replace(f"{MICRO[6]}]", f"{{variant: {MICRO[6]}, recipe: {{{setting}}}}}]")
    )
    study = load_study(tmp_path)
    finish(study)
    with pytest.raises(BinaryViTError, match=named):
        ablation(study)


def test_every_cell_leads_to_its_run(study):
    finish(study, skip=MICRO[2:3])
    table = ablation(study)
    sources = dict(list(table.sources.groupby(["row", "column"])))
    for _, row in table.numbers.iterrows():
        for name in ("top1", "top5", *tables._COSTS):
            assert sources[row["label"], name]["run"].tolist() == row["runs"].split()
    record = record_of(study, study.runs[1])
    (cell,) = sources["ReActNet-DeiT (baseline)", "top1"].to_dict("records")
    assert cell["commit"] == record.git.commit and cell["config_key"] == record.key.config
    assert cell["read_from"] == "run.json: weights.top1"
    step = sources["ReActNet-DeiT (baseline)", "top1_difference"]["run"].tolist()
    assert step == [run.id for run in study.runs[:2]]
    (absent,) = sources["+ average pooling", "top1"].to_dict("records")
    assert absent["state"] == "missing" and pd.isna(absent["commit"])


def test_files_hold_the_table(study, tmp_path):
    finish(study)
    table = ablation(study)
    paths = table.write()
    assert [path.name for path in paths] == ["ablation.csv", "ablation.md", "ablation.tex", "ablation.sources.csv"]
    stored = pd.read_csv(paths[0])
    pd.testing.assert_frame_equal(stored, table.numbers, check_dtype=False)
    markdown = paths[1].read_text()
    assert "| + pooling branches | 52.50 | +3.50 (+1.69 to +5.31) | 99.00 |" in markdown
    assert table.caption in markdown and table.finding in markdown
    note = json.loads((tmp_path / "tables" / "ablation.json").read_text())
    assert note["source"]["runs"] == {run.id: "0" * 40 for run in study.runs}
    assert note["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    before = [path.read_bytes() for path in paths]
    ablation(study).write()
    assert [path.read_bytes() for path in paths] == before


def test_latex_is_a_booktabs_tabular_and_escaped(make_study):
    study = make_study()
    finish(study)
    latex = ablation(study).to_latex()
    assert latex.count("\\toprule") == latex.count("\\midrule") == latex.count("\\bottomrule") == 1
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert body[0] == "\\begin{tabular}{lrrrrrrrrr}" and body[-1] == "\\end{tabular}"
    rows = [line for line in body if line.endswith(r"\\")]
    assert len(rows) == 1 + len(MICRO) and rows[0].startswith(r"variant & top-1 (\%) &")
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    table = tables.Table(OpenStudy(study), "odd", "50% of {odd}", *[pd.DataFrame({"a_b": ["#1 & 2"]})] * 3, "")
    assert r"a\_b \\" in table.to_latex() and r"\#1 \& 2" in table.to_latex()
    assert f"% + average pooling: {MICRO[2]}-seed0" in latex


def test_the_comparison_shows_nothing_of_another_scale(study):
    finish(study)
    table = published.comparison(OpenStudy(study), PUBLISHED)
    assert not any(f"{value:.2f}" in " ".join(table.text["top-1 here (%)"]) for value in TOP1.values())
    here = dict(zip(table.text["model"], table.text["top-1 here (%)"], strict=True))
    assert here["BinaryViT (+ pyramid)"] == "not run" and here["BNext-T"] == "-"
    assert "top1" not in table.numbers
    assert "not of the published figures' scale" in table.finding and "not run at this scale" in table.caption


def test_published_figures_stand_beside_their_certainty(study):
    with open(PUBLISHED, encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    text = published.comparison(OpenStudy(study), PUBLISHED).text.set_index("model")
    ladder = {"full-precision DeiT (teacher)": "DeiT-S full precision", "BinaryViT (+ pyramid)": "BinaryViT"}
    assert set(text.index) == {*rows, *(variant_style(name).label for name in SMALL)} - set(ladder.values())
    for label, shown in text.iterrows():
        row = rows.get(ladder.get(label, label))
        if row is None:
            assert shown["top-1 published (%)"] == "not available" and shown["certainty"] == "-"
        else:
            assert (shown["top-1 published (%)"], shown["certainty"]) == (row["top1"], row["certainty"])
    assert text.loc["BinaryViT (+ pyramid)", "OPs (1e8)"] == "0.70 (counted here)"
    assert text.loc["BinaryViT (+ pyramid)", "size (MB)"] == "7.83 (counted here)"
    assert text.loc["full-precision DeiT (teacher)", "size (MB)"] == "88.20 (counted here)"


IMAGENET = {"name": "imagenet-1k", "label": "ImageNet-1k", "eval_images": 50_000, "num_classes": 1000}


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"label": "ILSVRC/imagenet-1k"}, True),
        ({"eval_images": 10_000}, False),
        ({"num_classes": 100}, False),
        ({"label": "my photographs"}, False),
    ],
)
def test_only_imagenet_at_its_own_scale_is_compared(make_study, changes, comparable):
    study = make_study(names=SMALL[:2])
    data = record_of(study, study.runs[0]).data.model_copy(update=IMAGENET | changes)
    finish(study, dict(zip(SMALL, (79.5, 50.0), strict=False)), data=data)
    table = published.comparison(OpenStudy(study), PUBLISHED)
    here = dict(zip(table.text["model"], table.text["top-1 here (%)"], strict=True))
    assert here["full-precision DeiT (teacher)"] == ("79.50" if comparable else "not run")
    assert here["BinaryViT (+ pyramid)"] == "not run"
    if comparable:
        assert "79.50% here and 79.9% as published (second-hand): -0.40 points" in table.finding


def test_foreign_or_missing_published_figures_are_refused(tmp_path):
    with pytest.raises(BinaryViTError, match="no table of published figures"):
        published.read_published(tmp_path / "absent.csv")
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BinaryViTError, match="no table of published figures"):
        published.read_published(tmp_path / "foreign.csv")


def test_findings_say_what_the_numbers_say(study):
    finish(study)
    text = ablation(study).finding
    assert "BinaryViT, fp patch embeddings, is below its full-precision teacher by 16.00 (" in text
    assert "gains most is BinaryViT (+ pyramid), by +8.75 (+5.97 to +11.53) points" in text
    assert text.endswith("; not resolved: + affine, -0.25 (-0.74 to +0.24).")
    assert "loses" not in text, "one image of 400 says nothing"


def test_findings_hold_for_a_weak_teacher_and_a_loss(study):
    finish(study, dict(zip(MICRO, (40, 10, 20, 30, 40, 50, 35), strict=True)))
    text = ablation(study).finding
    assert "BinaryViT (+ pyramid), is above its full-precision teacher, which is no ceiling here, by +10.00 (" in text
    assert "BinaryViT, fp patch embeddings loses, -15.00 (" in text and "not resolved" not in text


def test_findings_of_one_or_no_run(study):
    assert "Nothing can be said yet" in ablation(study).finding
    finish(study, skip=MICRO[2:])
    text = ablation(study).finding
    assert "gains" not in text and "ReActNet-DeiT (baseline), is below its full-precision teacher by 33.00 (" in text


def test_the_finding_of_the_figure_names_the_undominated():
    points = pd.DataFrame(
        {"label": ["a", "b", "c", "d"], "ops": [1e6, 2e6, 3e6, 3e6], "top1": [10.0, 30.0, 20.0, 40.0]}
    ).assign(ops_elementwise=[5e6, 4e6, 5e6, 6e6], bytes=[2, 2, 1, 3])
    text = findings.of_accuracy_against_operations(points)
    assert "Of 4 models, 3" in text
    assert [name in text for name in ("a (10.00%, 1.00 M", "b (30", "c (20", "d (40")] == [True, True, False, True]
    assert text.endswith(
        " With elementwise work counted, another one beats a; by bytes in place of OPs, none beats c, b and d."
    )
    alike = findings.of_accuracy_against_operations(points.assign(ops_elementwise=points["ops"]))
    assert alike.endswith(" By bytes in place of OPs, none beats c, b and d.") and "elementwise" not in alike


def test_five_classes_are_needed_for_top5(study):
    result = RunResult(top1=50.0, top5=None, eval_loss=1.0, epochs=6, images_per_second=1.0)
    rewrite(study, MICRO[0], result=result)
    table = ablation(study)
    assert column(table, "top-5 (%)")[MICRO[0]] == "-" and math.isnan(table.numbers["top5"].iloc[0])
    assert pd.read_csv(io.StringIO(table.numbers.to_csv()))["top5"].isna().all()


def test_runs_of_a_study_cannot_be_chosen_for_a_table(tmp_path):
    study = write_study(tmp_path)
    finish(study)
    chosen = OpenStudy(study, (study.runs[1].id,))
    for make in (tables.ablation, ladder.comparison, ladder.accuracy_against_operations):
        with pytest.raises(BinaryViTError, match="Tables are of a whole study"):
            make(chosen)
