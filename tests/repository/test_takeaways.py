"""What the analysis notebooks tell a reader to take away holds for the committed study on CIFAR-10.

Whoever trains that study again finds here, in one place, each statement and the numbers it rests on. A notebook's
opening paragraph and its statements here are the same words.
"""

import json
import re

import pytest
from helpers.places import ROOT

from binaryvit.analysis import activations, attention, branches, precision
from binaryvit.analysis.attention.measure import head_statistics
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.stored import open_study
from binaryvit.models.ladder import variant_style

PYRAMIDS = [variant_style(f"binaryvit_micro_patch2_32{end}").label for end in ("", "_some_fp")]
BINARYVIT, BASELINE = PYRAMIDS[0], variant_style("reactdeit_micro_patch4_32").label


@pytest.fixture(scope="module")
def study():
    with stored_ones_only():
        yield open_study(ROOT / "results" / "cifar10")


def takeaway(notebook):
    """The opening paragraph of a notebook, in one line."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    paragraph = re.search(r"\*\*To take away\.\*\* (.*?)\n\n", "".join(cells[0]["source"]), re.DOTALL)
    return " ".join(paragraph[1].split())


def test_attention(study):
    statistics = head_statistics(study).dropna(subset="level")
    off = is_off(statistics["level"])
    density = statistics[~off & (statistics["keys"] > 1)].groupby("label")["density"].mean()
    peaks = attention.side_by_side(study).inputs["places"].groupby(["label", "image"])["ratio"].max()
    peaks = peaks.groupby("label").mean()[density.index]

    assert density.drop(PYRAMIDS).between(1 / 3, 0.52).all()
    assert peaks.drop(PYRAMIDS).min() > 1.4 and peaks[PYRAMIDS].max() < 1.25
    last = statistics["block"] == statistics.groupby("label")["block"].transform("max")
    assert (off == (last & statistics["label"].isin(PYRAMIDS))).all()
    assert takeaway("attention") == (
        "On CIFAR-10, the binary attention of the columnar models keeps a third to a half of the keys, and rolled out "
        "to the image it singles out places; that of the pyramids is nearly even over the image. In the last block of "
        "both pyramids, training drives the level $a$ to zero or below: attention is off there."
    )


def test_activations(study):
    signs = activations.sign_statistics(study).inputs["signs"]
    bits = (signs["entropy"] * signs["channels"]).groupby(signs["label"]).sum()
    assert round((bits / signs.groupby("label")["channels"].sum()).min(), 2) == 0.95
    layers = activations.weights(study).inputs["layers"]
    flipped = (layers["flipped"] * layers["weights"]).groupby(layers["label"]).sum()
    assert (flipped / layers.groupby("label")["weights"].sum()).max() < 0.2
    values = activations.values_from_one_bit(study).inputs["values"]
    assert values["median"][values["bound"].notna()].max() < 200
    assert values["median"][values["step"].isin(["context: + q + k + v", "MLP 2: + shortcut"])].median() > 1000
    read = values[values["step"] == "head: pooled"].groupby("label")["median"].median()
    assert read[BASELINE] == 2 and round(read.max()) == 54 and set(read[PYRAMIDS]) == {5}
    assert takeaway("activations") == (
        "After training on CIFAR-10, signs are nearly balanced (0.95 bits each, or more), and over four fifths of the "
        "weights still have the sign they were initialized with. What a binary layer lacks is values: a product takes "
        "fewer than 200, shortcuts that add several of them bring back thousands, and from one bit a classifier reads "
        "2 values of a CLS token, up to 54 of a mean over 64 tokens, and 5 of one over the pyramids' last 4."
    )


def test_branches(study):
    table = branches.accuracy(study).inputs["accuracies"]
    lowest = table.pivot(index="label", columns="removed", values="low")
    assert (lowest["all shortcuts and poolings"] < 10).all()
    assert (lowest["all products"] > 10).sum() == 4 and len(lowest) == 9
    binaryvit = table[table["label"] == BINARYVIT].set_index("removed")["accuracy"]
    lost = binaryvit["nothing"] - binaryvit
    assert lost[["attention products", "attention linears", "FFN linears"]].max() < 4 and lost["merges"] > 30
    assert takeaway("branches") == (
        "On CIFAR-10 none of nine models stays above chance without its real-valued shortcuts and poolings, and only "
        "four do without their products: neither side works alone. Of its binary parts BinaryViT depends most on the "
        "merges between stages; it loses less than 4 points without its attention products, its attention linears or "
        "its FFN linears."
    )


def test_precision(study):
    table = precision.precisions(study).set_index("precision")
    one, full = table.loc["W1A1"], table.loc["W32A32"]
    assert (round(full["bytes"] / one["bytes"]), round(full["ops"] / one["ops"])) == (13, 47)
    assert round(full["top1"] - one["top1"], 1) == 5.3 and table.loc["W32A1", "top1"] < table.loc["W1A32", "top1"]
    agreement = precision.agreement(study).inputs["agreement"].groupby("precision")["cka"].mean()
    assert agreement["W32A1"] < agreement["W1A32"]
    assert takeaway("precision") == (
        "BinaryViT in one bit is 13 times smaller than the same architecture in full precision, takes 47 times fewer "
        "operations, and loses 5.3 points top-1 on CIFAR-10. One-bit activations cost more than one-bit weights do, in "
        "accuracy and in how far features move from those of full precision."
    )
