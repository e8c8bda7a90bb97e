"""What a notebook opens with to take away is true for every committed study: every number in it, and every claim.

The sentences live in the notebook alone, in the cell tagged "takeaway". Below, each notebook's function checks the
claims on the numbers of a study and returns those that the sentences must hold, in their order and as written.
"""

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import pytest
import timm
from helpers.places import ROOT

from binaryvit.analysis import activations, attention, branches, curves, deployment, ladder, precision
from binaryvit.analysis.branches.capture import BINARY_GROUPS
from binaryvit.analysis.explore.explorer import Explorer, Selection
from binaryvit.analysis.labels import precision_rows
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.steps import difference
from binaryvit.analysis.stored import open_study
from binaryvit.models.cost import cost
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.studies.rows import read_ladder
from binaryvit.training.build import model_arguments

TEACHER, BASELINE, POOLED, BRANCHES, AFFINE, PYRAMID, _ = LADDER["micro"]
PYRAMIDS = [variant_style(f"binaryvit_micro_patch2_32{end}").label for end in ("", "_some_fp")]


@cache
def finished_study(name):
    """A committed study; None while its ladder is not trained, for then it says nothing yet."""
    opened = open_study(ROOT / "results" / name)
    return opened if all(row.values for row in read_ladder(opened.study)) else None


def first_run(opened, variant):
    return next(run for run in opened.runs() if run.variant == variant)


def tables(opened):
    numbers = ladder.ablation(opened).numbers.set_index("variant")
    best = numbers.drop(index=TEACHER)["top1"].max()
    gained, lost = numbers.loc[POOLED, "top1_difference"], best - numbers.loc[BASELINE, "top1"]
    assert numbers["top1_difference"].idxmax() == POOLED and gained > lost / 2
    return []


def curves_(opened):
    flips = curves.flips(opened).inputs["curves"].groupby(["label", "epoch"])["flip_rate"].mean().unstack()
    assert (flips.idxmax(axis=1) == flips.columns[0]).all() and (flips.idxmin(axis=1) == flips.columns[-1]).all()
    assert curves.shifts(opened).inputs["curves"]["mean_absolute_shift"].max() < 1 / 4
    return ["0.25", "1"]


def train(opened):
    run = first_run(opened, PYRAMID)
    rates = metrics(opened, PYRAMID)["flip_rate"]
    assert (run.record.result.epochs, run.record.config["teacher"] is not None) == (4, True)
    shares = [f"{100 * rates.iloc[0]:.1f}", f"{100 * rates.iloc[-1]:.1f}"]
    return [f"{run.record.data.train_images:,}", f"{run.record.weights.top1:.1f}", *shares]


def metrics(opened, variant):
    return pd.read_csv(first_run(opened, variant).folder / "metrics.csv")


def attention_(opened):
    statistics = attention.density(opened).inputs["statistics"]
    means = statistics[~is_off(statistics["level"])].groupby("label")[["density", "kept"]].mean()
    assert means["density"].max() < 0.95 and means["kept"].min() > 1 / 2
    return []


def activations_(opened):
    signs = activations.sign_statistics(opened).inputs["signs"]
    bits = (signs["entropy"] * signs["channels"]).groupby(signs["label"]).sum()
    assert (bits / signs.groupby("label")["channels"].sum()).min() > 0.7
    layers = activations.flipped_signs(opened).inputs["layers"]
    flipped = (layers["flipped"] * layers["weights"]).groupby(layers["label"]).sum()
    assert (flipped / layers.groupby("label")["weights"].sum()).max() < 1 / 2
    values = activations.values_from_one_bit(opened).inputs["values"]
    assert values["median"][values["bound"].notna()].max() < 250
    added = values[values["step"].isin(["context: + q + k + v", "FFN 2: + shortcut"])]
    assert (added["median"] / added["observations"] > 0.9).mean() > 1 / 2
    return ["0.7", "250"]


def branches_(opened):
    table = branches.accuracy(opened).inputs["accuracies"].query("bits == 'W1A1'")
    accuracy = table.pivot_table("accuracy", "label", "removed")
    chance = 100 / opened.runs()[0].record.data.num_classes
    assert accuracy["all shortcuts and poolings"].max() < 2 * chance
    least = {"smoke": 15, "cifar10": 45}
    assert (accuracy["nothing"] - accuracy["all products"]).min() >= least[opened.study.name]
    lost = accuracy.loc[PYRAMIDS[0], "nothing"] - accuracy.loc[PYRAMIDS[0], list(BINARY_GROUPS)]
    assert lost.idxmax() == "merges"
    return ["15", "45"]


def precision_(opened):
    run = first_run(opened, PYRAMID)
    costs = {}  # of all four precisions: a study may train fewer
    for (weight_bits, activation_bits), name in precision.PRECISIONS.items():
        arguments = model_arguments(run.config, 10) | {"weight_bits": weight_bits, "activation_bits": activation_bits}
        counted = cost(timm.create_model(PYRAMID, **arguments))
        costs[name] = {"bytes": counted.bytes, "ops": counted.ops, "all": counted.ops_elementwise}
    share = pd.DataFrame(costs).T / pd.Series(costs["W32A32"])
    assert share.loc["W1A1", "bytes"] < 1 / 10 and share.loc["W1A1", "ops"] < 1 / 50
    assert share.loc["W1A1", "all"] == pytest.approx(0.1, abs=0.01)
    assert (share.loc[["W1A32", "W32A1"], "ops"] > 0.95).all()
    rows = {row.runs[0].bits: row for row in precision_rows(opened)}
    change = difference(rows[32, 1], rows[1, 32])
    assert change.low > 0 and change.seeds == 1
    return []


def explore(opened):
    explorer = Explorer(opened, 1)
    for run in opened.runs():
        seen = explorer._see(Selection(run.id, explorer.images[0]))
        assert bool(seen.before_sign) == run.is_binary_transformer
        assert all(
            (len(maps.used.unique()) <= 2) == run.is_binary_transformer for maps in seen.maps if maps.used.shape[-1] > 1
        )
    return []


def deployment_(opened):
    run = first_run(opened, PYRAMID)
    with TemporaryDirectory() as folder:
        deployed = deployment.deploy(run.folder, Path(folder) / "model.bvit")
        *_, whole = deployment.file_bytes(deployed).itertuples()
        identical = deployment.identical_logits(deployed, deployed.random_images(20))
    assert whole.stored < 1.05 * whole.counted and identical == 20
    return ["5", "64"]


# By notebook: the check, and the studies it is for.
TAKEAWAYS = {
    "tables": (tables, ["cifar10", "smoke"]),
    "curves": (curves_, ["cifar10", "smoke"]),
    "train": (train, ["smoke"]),
    "attention": (attention_, ["cifar10", "smoke"]),
    "activations": (activations_, ["cifar10", "smoke"]),
    "branches": (branches_, ["cifar10", "smoke"]),
    "precision": (precision_, ["cifar10"]),
    "explore": (explore, ["cifar10", "smoke"]),
    "deployment": (deployment_, ["cifar10", "smoke"]),
}


def takeaway(name):
    document = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert document.cells[1].metadata.get("tags") == ["takeaway"], "it follows the title"
    return " ".join(document.cells[1].source.split())


@pytest.mark.parametrize(
    ("name", "study"),
    [(name, study) for name, (_, studies) in TAKEAWAYS.items() for study in studies],
)
def test_what_a_notebook_opens_with_is_true_for_each_committed_study(name, study):
    if (opened := finished_study(study)) is None:
        pytest.skip(f"the ladder of {study} is not finished")
    check, _ = TAKEAWAYS[name]
    text = takeaway(name)
    # Whole numbers that stand alone: not those in names, as in CIFAR-10 or `top-1`.
    with stored_ones_only():
        numbers = check(opened)
    assert re.findall(r"(?<![\w.-])\d(?:[\d,]*\d)?(?:\.\d+)?", text) == numbers


@pytest.mark.parametrize("name", TAKEAWAYS)
def test_a_takeaway_is_two_sentences(name):
    text = takeaway(name).removeprefix("**To take away.** ")
    assert text != takeaway(name) and len(re.findall(r"[.!?](?= [A-Z]|$)", text)) == 2
