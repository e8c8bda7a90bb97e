"""Sentences of finding about branches, made from the numbers so that they hold whatever came out."""

import pandas as pd


def of_norms(norms: pd.DataFrame) -> str:
    """How large branches are against their shortcuts, by kind, over all runs."""
    models = norms["run"].nunique()
    larger = int((norms["ratio"] > 1).sum())
    parts = []
    for kind, ratios in norms.groupby("kind", sort=False)["ratio"]:
        parts.append(f"{kind} {ratios.median():.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    medians = norms.groupby("kind")["ratio"].median()
    return (
        f"Over {len(norms)} additions of {models} model{'s' * (models > 1)}, the branch is larger than its shortcut at "
        f"{larger}. The median of branch / shortcut (smallest to largest) is, by what is added: {'; '.join(parts)}. "
        f"Smallest beside their shortcut are the {medians.idxmin()}, largest the {medians.idxmax()}."
    )


def of_accuracies(table: pd.DataFrame, chance: float, evaluated_on: str, estimated_on: str) -> str:
    """What the models keep without their products, without their shortcuts, and what costs most."""
    sentences = [
        f"On {evaluated_on} (chance: {chance:.0f} %), with batch-norm statistics re-estimated on {estimated_on} after "
        "the removal:"
    ]
    fair = table[table["statistics"] == "re-estimated"]
    for label, own in fair.groupby("label", sort=False):
        accuracy = own.set_index("removed")["accuracy"]
        kept = [f"{accuracy[name]:.1f} % without {name}" for name in accuracy.index if name.startswith("all ")]
        single = accuracy[[name for name in accuracy.index if name != "nothing" and not name.startswith("all ")]]
        sentences.append(
            f"{label} has {accuracy['nothing']:.1f} %, {' and '.join(kept)}; of single groups the {single.idxmin()} "
            f"cost most ({_change(single.min(), accuracy['nothing'])}) and the {single.idxmax()} least "
            f"({_change(single.max(), accuracy['nothing'])})."
        )
    return " ".join([*sentences, _carrier(fair, chance), _of_statistics(table), _of_sampling(table)])


def _change(after: float, before: float) -> str:
    return f"{after - before:+.1f} points"


def _carrier(fair: pd.DataFrame, chance: float) -> str:
    """In how many models one side alone stays above chance, beyond its 95 % interval."""
    models = fair["run"].nunique()
    alone = {
        "the real-valued shortcuts and poolings": fair[fair["removed"] == "all products"],
        "the products": fair[fair["removed"] == "all shortcuts and poolings"],
    }
    counts = [f"{name} in {int((rows['low'] > chance).sum())}" for name, rows in alone.items()]
    return f"Alone, above chance beyond the 95 % interval, are {' and '.join(counts)} of {models} models."


def _of_statistics(table: pd.DataFrame) -> str:
    """How much of a drop was the statistics' alone."""
    wide = table.pivot(index=["label", "removed"], columns="statistics", values="accuracy")
    gain = wide["re-estimated"] - wide["stored"]
    label, removed = gain.idxmax()
    return (
        f"Re-estimation changes the accuracy by {gain.median():+.1f} points in the median and by "
        f"{gain.max():+.1f} at most ({label}, without {removed}), and with nothing removed by "
        f"{gain.xs('nothing', level='removed').max():+.1f} at most: what it gives beyond that was an artefact of "
        "shifted statistics in the drop."
    )


def of_stages(table: pd.DataFrame, evaluated_on: str, estimated_on: str) -> str:
    """Which stage's branches cost most, for each pyramid."""
    sentences = []
    for label, own in table.groupby("label", sort=False):
        intact = own[own["removed"] == "nothing"]["accuracy"].iloc[0]
        single = own[(own["removed"] != "nothing") & ~own["removed"].str.startswith("all ")]
        worst = single.iloc[single["accuracy"].argmin()]
        together = own[own["removed"] == "all products"].set_index("part")["accuracy"]
        stages = ", ".join(
            f"stage {part.removeprefix('stages.')}: {_change(value, intact)}" for part, value in together.items()
        )
        sentences.append(
            f"In {label}, of single groups, the {worst['removed']} of stage {worst['part'].removeprefix('stages.')} "
            f"cost most ({_change(worst['accuracy'], intact)}); without all products of a stage ({stages})."
        )
    intro = f"On {evaluated_on}, with batch-norm statistics re-estimated on {estimated_on}."
    return " ".join([intro, *sentences, _of_sampling(table)])


def _of_sampling(table: pd.DataFrame) -> str:
    """What of the differences chance in the choice of images explains."""
    half = (table["high"] - table["low"]).max() / 2
    return f"An accuracy is uncertain by up to {half:.1f} points (95 % interval): smaller differences rank nothing."
