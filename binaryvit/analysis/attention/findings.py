"""What the numbers on attention say: for each figure its claim, which is its title, and a finding of two sentences."""

from collections.abc import Sequence

import pandas as pd

from binaryvit.analysis.attention.rollout import common_side, comparable_areas
from binaryvit.analysis.labels import block_of
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.wording import listed, span

_REST = "Pooling branches and the shortcuts of keys and values, which also pass on what places hold, are left out."
_APART = 0.1  # relative distance from which one block is said to be the first of all
_NEARLY_ALL = 0.99  # the share of attended keys from which a head is said to average over all of them


def of_rollouts(places: pd.DataFrame) -> tuple[str, str]:
    """Which model's rollout is most, and which is least selective, by `rollout.comparable_areas`."""
    rolled, side = "Rolled out, attention", common_side(places)
    areas, images = comparable_areas(places), places["image"].nunique()
    peaks = areas.groupby("label", sort=False)["ratio"].mean()
    if peaks.empty:
        return f"{rolled} falls on no place of these images", "Attention is off in every model that is shown."
    if side == 1:
        return f"{rolled} favours the orange places", "The models' keys form grids without common areas to compare."
    low, high = (f"{peak:.1f}" for peak in (peaks.min(), peaks.max()))
    flattest, peaked = (_named(peaks.index[peaks.map("{:.1f}".format) == shown]) for shown in (low, high))
    claim = f"{rolled} peaks highest in {peaked}, {high} times an even share, and lowest in {flattest}, {low} times"
    if low == high:
        claim = f"{rolled} peaks at {low} times an even share in {'every model' if len(peaks) > 1 else peaks.index[0]}"
    mean = f", the mean of these {images} images" * (images > 1)
    return claim, f"Compared is what the most attended of {side} x {side} areas gets{mean}. {_REST}"


def _named(models: Sequence[str]) -> str:
    """Up to two models by name, more by their number."""
    return listed(models) if len(models) < 3 else f"{len(models)} models"


def of_heads(maps: pd.DataFrame, label: str) -> tuple[str, str]:
    """How selective a model's blocks are for the patch that is shown."""
    off = maps[maps["off"]]
    maps = maps[~maps["off"]]
    silent = f" Attention is off in block {listed(off['layer'].drop_duplicates().map(block_of))}." if len(off) else ""
    if maps.empty:
        return f"{label}: the marked patch attends to nothing", silent.strip()
    of_map = maps.groupby(["image", "layer", "head"], sort=False)
    if maps["attended"].isna().all():
        peak = of_map["ratio"].max()
        highest = peak.groupby(["image", "layer"], sort=False).max()
        claim = f"{label}: the strongest key of a block gets {span(highest, '{:.1f}')} times a uniform share"
        block = _everywhere_first(-highest)
        if block:
            claim = f"{label}: in each image the patch singles out keys most in block {block}"
        return claim, (
            f"The highest probability is {peak.max():.1f} times that of even attention; in the median head it is "
            f"{peak.median():.1f} times."
        )
    share = of_map["attended"].mean()
    block = _everywhere_first(maps.groupby(["image", "layer"], sort=False)["attended"].mean())
    if share.min() == 1:
        claim = f"{label}: the threshold leaves the marked patch every key"
    elif block:
        claim = f"{label}: in each image the marked patch attends to the fewest keys in block {block}"
    else:
        kept = share.groupby(["image", "layer"], sort=False).mean()
        claim = f"{label}: for the marked patch the heads of a block keep {span(kept, '{:.0%}')} of the keys"
    return claim, (
        f"The marked patch attends to {share.mean():.0%} of the keys: to every key in {(share == 1).sum()} of "
        f"{len(share)} maps, to none in {(share == 0).sum()}.{silent}"
    )


def _everywhere_first(values: pd.Series) -> str | None:
    """The block whose value, by image and layer, is the lowest in every image, by a tenth; None: there is none."""
    by_layer = values.unstack("layer")
    lowest, *_ = firsts = by_layer.idxmin(axis=1)
    others = by_layer.drop(columns=lowest).min(axis=1)
    apart = (others - by_layer[lowest] > _APART * others.abs()).all() if by_layer.shape[1] > 1 else False
    return block_of(lowest) if apart and len(set(firsts)) == 1 else None


def of_density(statistics: pd.DataFrame) -> tuple[str, str]:
    """How many keys binary attention keeps, and how much of the probability is on them."""
    off = is_off(statistics["level"])
    several = statistics["run"].nunique() if statistics["seed"].nunique() > 1 else 0
    on, silent = statistics[~off], ""
    if off.any():
        silent = f" Attention is off in {_places(statistics[off], several)}."
    if on.empty:
        return "Binary attention is off in every head", silent.strip()
    keys, probability = (span(on.groupby("label")[column].mean(), "{:.0%}") for column in ("density", "kept"))
    averaging = int((on["density"] > _NEARLY_ALL).sum())
    number = f"{len(on)} heads" + f" in {several} runs" * bool(several)
    ends = span(on["density"], "{:.1%}")
    merely = f"Single heads keep {ends} of their keys, so none averages over the whole image"
    if averaging:
        keep = "keeps nearly all keys and so averages" if averaging == 1 else "keep nearly all keys and so average"
        merely = f"{averaging} of {number} {keep} over the image"
    idle = on[on["density"] * on["keys"] < 1]
    few = ""
    if len(idle):
        verb = "keep" if len(idle) > 1 else "keeps"
        few = f"; {len(idle)} of {number} {verb} less than one key for the average query, in {_places(idle, several)}"
    passed = f"{keys} of the keys pass the threshold and hold {probability} of the probability"
    return f"Averaged over a model's heads, {passed}", f"{merely} regardless of the query{few}.{silent}"


def of_evenness(statistics: pd.DataFrame) -> tuple[str, str]:
    """How selective attention is before binarization, and whether more so than chance makes it."""
    on = statistics[~is_off(statistics["level"])]
    mean = on.groupby("label", sort=False)["evenness"].mean()
    binary = on.groupby("run", sort=False)[["evenness", "chance"]].mean().dropna(subset="chance")
    finding = (
        f"The entropy of a row is {mean.min():.0%} of its maximum in {mean.idxmin()} and {mean.max():.0%} in "
        f"{mean.idxmax()}; 100% would be all keys alike."
    )
    if binary.empty:
        claim = f"attention is most selective in {mean.idxmin()} and most even in {mean.idxmax()}"
    else:
        more = (binary["evenness"] < binary["chance"]).sum()
        runs = (
            "every run of a binary model" if more == len(binary) else f"{more} of {len(binary)} runs of binary models"
        )
        claim = f"attention is more selective in {runs} than between random signs"
        finding = f"{finding[:-1]}, and random signs of as many keys have {span(binary['chance'], '{:.0%}')}."
    return f"Averaged over heads, before the threshold, {claim}", finding


def _places(heads: pd.DataFrame, with_seed: bool) -> str:
    """Which blocks the heads are of: "block 0.0 of a, seed 1"."""
    return listed(
        f"block {listed(layers.drop_duplicates().map(block_of))} of {label}" + (f", seed {seed}" if with_seed else "")
        for (label, seed), layers in heads.groupby(["label", "seed"], sort=False)["layer"]
    )
