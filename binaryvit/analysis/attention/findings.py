"""Sentences of finding under the figures on attention, made from the numbers that are drawn."""

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL

_ALL_KEYS = 0.99  # the share of attended keys from which a head is said to average over all of them


def of_images(credit: str) -> str:
    """Whose the images are."""
    return f"Images: {credit}."


def of_places(places: pd.DataFrame, teacher: str | None) -> str:
    """How alike the rollouts are to the teacher's, and how uneven each is."""
    rollouts = places[places["map"] == "rollout"]
    grids = {
        label: {image: _grid(of_image) for image, of_image in of_model.groupby("image", sort=False)}
        for label, of_model in rollouts.groupby("label", sort=False)
    }
    images = rollouts["image"].nunique()
    peaks = {label: np.mean([grid.max() for grid in of_model.values()]) for label, of_model in grids.items()}
    sharp, even = max(peaks, key=peaks.get), min(peaks, key=peaks.get)
    sentences = [
        f"On {images} image{'s' * (images > 1)}, the rollout is most uneven in {sharp}, whose most attended place gets "
        f"{peaks[sharp]:.2f} times the even share, and most even in {even} ({peaks[even]:.2f} times)."
    ]
    others = [label for label in grids if label != teacher]
    if teacher in grids and others:
        alike = {
            label: np.mean([_correlation(grids[label][image], grids[teacher][image]) for image in grids[teacher]])
            for label in others
        }
        best, worst = max(alike, key=alike.get), min(alike, key=alike.get)
        sentences.append(
            f"Most alike to the teacher's is that of {best} (correlation over places {alike[best]:+.2f}), least that "
            f"of {worst} ({alike[worst]:+.2f})."
        )
    return " ".join(sentences)


def of_heads(maps: pd.DataFrame) -> str:
    """How selective each model's heads are for the patch that is shown."""
    sentences = []
    for label, of_model in maps.groupby("label", sort=False):
        of_head = _with_several_keys(of_model.groupby(["image", "block", "head"]))
        if of_model["attended"].notna().any():
            share = of_head["attended"].mean()
            everything, nothing = int((share == 1).sum()), int((share == 0).sum())
            _, block, head = share.idxmin()
            sentences.append(
                f"In {label} the patch attends to all keys in {everything} of {len(share)} maps and to none in "
                f"{nothing}; the sparsest is of block {block}, head {head}: {share.min():.0%} of the keys."
            )
        else:
            peak = of_head["ratio"].max()
            _, block, head = peak.idxmax()
            sentences.append(
                f"In {label} the highest probability is {peak.max():.1f} times that of even attention "
                f"(block {block}, head {head})."
            )
    return " ".join(sentences)


def of_density(statistics: pd.DataFrame) -> str:
    """How dense the binary maps are, and where the learned threshold lies."""
    statistics = statistics[statistics["keys"] > 1]  # a single key is attended or nothing is
    mean = statistics.groupby("label", sort=False)["density"].mean()
    densest, sparsest = mean.idxmax(), mean.idxmin()
    unlearned = statistics["level"] <= MINIMUM_ATTENTION_LEVEL
    averaging = statistics[(statistics["density"] > _ALL_KEYS) & ~unlearned]
    levels, thresholds = statistics["level"][~unlearned], statistics["threshold"][~unlearned]
    sentences = [
        f"On average over its heads, {densest} attends to {mean[densest]:.0%} of the keys, the most, and {sparsest} "
        f"to {mean[sparsest]:.0%}, the fewest.",
        f"{len(averaging)} of the {len(statistics)} heads with several keys attend to more than {_ALL_KEYS:.0%} of "
        "them, so that they only average over the image"
        + (f"; most of these are in {averaging['label'].mode()[0]}." if len(averaging) else "."),
    ]
    if len(levels):
        sentences.append(
            f"The level a lies between {levels.min():.2g} and {levels.max():.2g} (it starts at 0.005): a key is "
            f"attended from {thresholds.min():.2g} to {thresholds.max():.2g} times the even probability on."
        )
    places = statistics[unlearned].groupby(["label", "seed"], sort=False)["block"].unique()
    for (label, seed), blocks in places.items():
        of_seed = f" (seed {seed})" if statistics["seed"].nunique() > 1 else ""
        sentences.append(
            f"In {label}{of_seed} training drove a to zero or below in block {', '.join(map(str, sorted(blocks)))}, "
            f"where {MINIMUM_ATTENTION_LEVEL:g} takes its place: all keys are attended, by next to nothing, and the "
            "block does without its attention product."
        )
    return " ".join(sentences)


def of_threshold(statistics: pd.DataFrame) -> str:
    """How even attention is before binarization, and what the threshold takes from it."""
    # A single key has all the attention; its entropy says nothing.
    mean = statistics[statistics["keys"] > 1].groupby("label", sort=False)["evenness"].mean()
    most, least = mean.idxmax(), mean.idxmin()
    sentences = [
        f"Before binarization, attention is most even in {most} (entropy {mean[most]:.0%} of its maximum on average "
        f"over the heads) and most selective in {least} ({mean[least]:.0%})."
    ]
    binary = statistics.dropna(subset="removed")
    if not binary.empty:
        removed = binary.groupby("label", sort=False)["removed"].mean()
        high, low = removed.idxmax(), removed.idxmin()
        sentences.append(
            f"The threshold removes the most probability in {high} ({removed[high]:.1%} on average) and the least in "
            f"{low} ({removed[low]:.1%})."
        )
        worst = binary.loc[binary["empty"].idxmax()]
        if worst["empty"] > 0:
            sentences.append(
                f"Rows without any attended key are at most {worst['empty']:.2%} of a head's ({worst['label']}, block "
                f"{worst['block']}, head {worst['head']})."
            )
        else:
            sentences.append("No row loses all of its keys.")
    return " ".join(sentences)


def _with_several_keys(maps: DataFrameGroupBy) -> DataFrameGroupBy:
    """The maps of more than one key; all of them where there is no other."""
    several = maps.filter(lambda of_head: len(of_head) > 1)
    return several.groupby(maps.keys) if len(several) else maps


def _grid(frame: pd.DataFrame) -> np.ndarray:
    return frame.pivot(index="row", columns="column", values="ratio").to_numpy()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, over the places of a grid that both fit into; 0 where one of them is even."""
    side = np.lcm(len(one), len(other))
    one, other = (np.kron(grid, np.ones((side // len(grid),) * 2)).ravel() for grid in (one, other))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
