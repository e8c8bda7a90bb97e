"""What the numbers on attention say: for each figure its claim, which is its title, and a finding of two sentences."""

import numpy as np
import pandas as pd

from binaryvit.analysis.levels import is_off

_NEARLY_ALL = 0.99  # the share of attended keys from which a head is said to average over all of them


def of_rollouts(places: pd.DataFrame, teacher: str | None) -> tuple[str, str]:
    """Claim and finding: how uneven each model's rollout is, and how like the teacher's."""
    grids = {
        label: {image: _grid(of_image) for image, of_image in of_model.groupby("image", sort=False)}
        for label, of_model in places.groupby("label", sort=False)
    }
    peaks = {label: np.mean([grid.max() for grid in of_model.values()]) for label, of_model in grids.items()}
    sharp, even = max(peaks, key=peaks.get), min(peaks, key=peaks.get)
    images = places["image"].nunique()
    claim = f"Rolled out to the image, attention is most selective in {sharp} and most even in {even}"
    finding = (
        f"The most attended place gets {peaks[sharp]:.2f} times its even share in {sharp} and {peaks[even]:.2f} times "
        f"in {even} (mean of {images} image{'s' * (images > 1)})."
    )
    others = [label for label in grids if label != teacher]
    if teacher in grids and others:
        alike = {
            label: np.mean([_correlation(grids[label][image], grids[teacher][image]) for image in grids[teacher]])
            for label in others
        }
        best, worst = max(alike, key=alike.get), min(alike, key=alike.get)
        finding += (
            f" {best} comes closest to the teacher's map (correlation over places {alike[best]:+.2f}), {worst} least "
            f"({alike[worst]:+.2f})."
        )
    return claim, finding


def of_depths(places: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how selective the first and the last block are on average over their heads and queries."""
    peaks = places.groupby(["label", "map", "image"], sort=False)["ratio"].max().groupby(["label", "map"]).mean()
    peaks = peaks.unstack()[places["map"].unique()]
    (first, last), on = peaks.columns, peaks.dropna()
    claim = (
        f"The last block is more selective than the first in {int((on[last] > on[first]).sum())} of {len(on)} models"
    )
    claim += " whose attention is on in both" if len(on) < len(peaks) else ""
    finding = (
        f"The most attended place gets {peaks[first].min():.2f} to {peaks[first].max():.2f} times its even share in "
        f"the {first} and {peaks[last].min():.2f} to {peaks[last].max():.2f} times in the {last}."
    )
    off = [f"the {name} of {label}" for name in peaks.columns for label in peaks.index[peaks[name].isna()]]
    return claim, finding + (f" Attention is off in {_listed(off)}." if off else "")


def of_heads(maps: pd.DataFrame, label: str) -> tuple[str, str]:
    """Claim and finding: how selective a model's heads are for the patch that is shown."""
    several = maps.groupby(["image", "block", "head"]).filter(lambda own: len(own) > 1)  # one key says nothing
    attending = several[~several["off"]].groupby(["image", "block", "head"])
    off = sorted(maps["block"][maps["off"]].unique())
    silent = f" Attention is off in block {_listed(off)}." if off else ""
    if not len(attending):
        return (
            f"{label}: the marked patch has no keys to choose from",
            silent.strip() or "Every block has a single key.",
        )
    if maps["attended"].isna().all():
        peak = attending["ratio"].max()
        _, block, head = peak.idxmax()
        return f"{label}: the marked patch prefers some keys by up to {peak.max():.1f} times", (
            f"The highest probability is {peak.max():.1f} times that of even attention (block {block}, head {head}); "
            f"in the median head it is {peak.median():.1f} times."
        )
    share = 100 * attending["attended"].mean()
    _, block, head = share.idxmin()
    return f"{label}: the marked patch attends to {share.mean():.0f} % of the keys", (
        f"It attends to every key in {int((share == 100).sum())} of {len(share)} maps and to none in "
        f"{int((share == 0).sum())}; the sparsest attends to {share.min():.0f} % (block {block}, head {head}).{silent}"
    )


def of_density(statistics: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how many heads choose among the keys at all, and where the learned threshold lies."""
    statistics = statistics[statistics["keys"] > 1]  # of a single key nothing can be left out
    off = is_off(statistics["level"])
    attending = statistics[~off]
    averaging = attending[attending["density"] > _NEARLY_ALL]
    claim = (
        f"{len(attending) - len(averaging)} of {len(statistics)} heads choose among the keys (attending to nearly all: "
        f"{len(averaging)}, off: {int(off.sum())})"
    )
    if attending.empty:
        return claim, "Training drove every level a to zero or below."
    mean = 100 * attending.groupby("label", sort=False)["density"].mean()
    finding = (
        f"Where attention is on, {mean.idxmax()} attends to {mean.max():.0f} % of the keys, the most, and "
        f"{mean.idxmin()} to {mean.min():.0f} %, the fewest; a key is attended from "
        f"{attending['threshold'].min():.2g} to {attending['threshold'].max():.2g} times the even probability on."
    )
    return claim, finding + _of_off(statistics[off], with_seed=statistics["seed"].nunique() > 1)


def _of_off(off: pd.DataFrame, with_seed: bool) -> str:
    """Which blocks do without attention."""
    if off.empty:
        return ""
    places = [
        f"block {_listed(sorted(blocks))} of {label}" + (f", seed {seed}" if with_seed else "")
        for (label, seed), blocks in off.groupby(["label", "seed"], sort=False)["block"].unique().items()
    ]
    return f" Training drove the level a to zero or below in {_listed(places)}: no key is attended there."


def of_evenness(statistics: pd.DataFrame, teacher: str | None) -> tuple[str, str]:
    """Claim and finding: how selective attention is before binarization, against the teacher's."""
    on = statistics[(statistics["keys"] > 1) & ~is_off(statistics["level"])]
    mean = 100 * on.groupby("label", sort=False)["evenness"].mean()
    binary = mean[mean.index != teacher]
    if teacher not in mean or binary.empty:
        claim = f"Before the threshold, attention is most even in {mean.idxmax()} and most selective in {mean.idxmin()}"
    else:
        more = int((binary > mean[teacher]).sum())
        claim = f"Before the threshold, {more} of {len(binary)} binary models attend more evenly than the teacher"
    return claim, (
        f"The entropy of a row is {mean.min():.0f} % of its maximum in {mean.idxmin()} and {mean.max():.0f} % in "
        f"{mean.idxmax()} (mean of the heads that are on); 100 % would be all keys alike."
    )


def of_threshold(statistics: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: what the threshold takes from the probabilities."""
    on = statistics[statistics["removed"].notna() & ~is_off(statistics["level"])]
    if on.empty:
        return "Attention is off in every head", "Training drove every level a to zero or below."
    removed = 100 * on.groupby("label", sort=False)["removed"].mean()
    claim = f"The threshold removes {removed.min():.0f} % to {removed.max():.0f} % of the attention probability"
    worst = on.loc[on["empty"].idxmax()]
    finding = f"Most in {removed.idxmax()}, least in {removed.idxmin()} (means over the heads that are on)."
    if worst["empty"] > 0:
        return claim, finding + (
            f" At most {100 * worst['empty']:.2f} % of a head's queries lose all of their keys ({worst['label']}, "
            f"block {worst['block']}, head {worst['head']})."
        )
    return claim, f"{finding} No query loses all of its keys."


def _listed(words: list) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def _grid(frame: pd.DataFrame) -> np.ndarray:
    return frame.pivot(index="row", columns="column", values="ratio").to_numpy()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, over the places of a grid that both fit into; 0 where one of them is even."""
    side = np.lcm(len(one), len(other))
    one, other = (np.kron(grid, np.ones((side // len(grid),) * 2)).ravel() for grid in (one, other))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
