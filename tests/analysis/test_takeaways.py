"""What a notebook opens with to take away is true for the committed study: every number in it, and every claim.

The sentences live in the notebook alone, in the cell tagged "takeaway". Below, each notebook's function checks the
claims on the study's own numbers and returns those that the sentences must hold, in their order and as written.
"""

import re

import nbformat
import pandas as pd
import pytest
from helpers.places import ROOT

from binaryvit.analysis import curves, ladder
from binaryvit.analysis.ladder import findings
from binaryvit.analysis.stored import open_study
from binaryvit.studies.rows import read_ladder

CIFAR10, SMOKE = (open_study(ROOT / "results" / name) for name in ("cifar10", "smoke"))
ROWS = {row.variant: row for row in read_ladder(CIFAR10.study)}
TEACHER, BASELINE, POOLED, BRANCHES, AFFINE, PYRAMID, _ = ROWS


def tables():
    numbers = ladder.ablation(CIFAR10).numbers.set_index("variant")
    best = numbers.drop(TEACHER)["top1"].idxmax()
    step = numbers["top1_difference"]
    explained = findings.resolution([ROWS[name] for name in (POOLED, BRANCHES, AFFINE)])
    assert step[[POOLED, BRANCHES, AFFINE]].idxmax() == POOLED and step[[BRANCHES, AFFINE]].abs().max() < explained
    assert step[PYRAMID] < -explained and numbers.loc[BASELINE, "top1"] < numbers.loc[TEACHER, "top1"]
    return [
        f"{numbers.loc[TEACHER, 'top1'] - numbers.loc[best, 'top1']:.1f}",
        f"{numbers.loc[TEACHER, 'ops'] / numbers.loc[best, 'ops']:.0f}",
        f"{step[POOLED]:.1f}",
        f"{-step[PYRAMID]:.1f}",
    ]


def curves_():
    table = curves.accuracy(CIFAR10).inputs["curves"]
    assert (table.groupby("label")["top1"].agg(lambda top1: top1.iloc[-1] - top1.iloc[-2]) > 0).all()
    flips = curves.flips(CIFAR10).inputs["curves"]
    assert flips[["flip_rate", "lr"]].corr(method="spearman").iloc[0, 1] > 0.5
    rates = metrics(CIFAR10, PYRAMID)["flip_rate"]
    return [f"{100 * rates.iloc[0]:.1f}", f"{100 * rates.iloc[-1]:.1f}"]


def train():
    (run,) = (run for run in SMOKE.runs() if run.variant == PYRAMID)
    rates = metrics(SMOKE, PYRAMID)["flip_rate"]
    assert (run.record.result.epochs, run.record.config["teacher"] is not None) == (4, True)
    shares = [f"{100 * rates.iloc[0]:.1f}", f"{100 * rates.iloc[-1]:.1f}"]
    return [f"{run.record.data.train_images:,}", f"{run.record.result.top1:.1f}", *shares]


def metrics(opened, variant):
    (run,) = (run for run in opened.runs() if run.variant == variant)
    return pd.read_csv(run.folder / "metrics.csv")


TAKEAWAYS = {"tables": tables, "curves": curves_, "train": train}


def takeaway(name):
    document = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert document.cells[1].metadata.get("tags") == ["takeaway"], "it follows the title"
    return " ".join(document.cells[1].source.split())


@pytest.mark.parametrize("name", TAKEAWAYS)
def test_what_a_notebook_opens_with_is_true_for_the_committed_study(name):
    text = takeaway(name)
    # Whole numbers that stand alone: not those in names, as in CIFAR-10 or `top-1`.
    assert re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", text) == TAKEAWAYS[name]()


@pytest.mark.parametrize("name", TAKEAWAYS)
def test_a_takeaway_is_two_sentences(name):
    text = takeaway(name).removeprefix("**To take away.** ")
    assert text != takeaway(name) and len(re.findall(r"[.!?](?= [A-Z]|$)", text)) == 2
