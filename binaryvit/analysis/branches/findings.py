"""What the numbers on branches say: for each figure its claim, which is its title, and a finding of two sentences."""

import pandas as pd


def of_norms(norms: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how large branches are against their shortcuts, over all runs."""
    ratios = norms["ratio"].dropna()
    smaller, off = int((ratios < 1).sum()), len(norms) - len(ratios)
    claim = f"At {smaller} of {len(ratios)} additions the branch is smaller than the shortcut it is added to"
    medians = norms.groupby("kind", sort=False)["ratio"].median()
    finding = (
        f"The {medians.idxmin()} are the smallest against their shortcut ({medians.min():.2f} times in the median), "
        f"the {medians.idxmax()} the largest ({medians.max():.2f} times)."
    )
    return claim, finding + (f" Attention that is off, {off} of its products, is left out." if off else "")


def of_accuracies(table: pd.DataFrame, chance: float, estimated_on: str) -> tuple[str, str]:
    """Claim and finding: whether products or shortcuts alone keep a model above chance, and which group costs most.

    `table` is of re-estimated statistics.
    """
    models = table["run"].nunique()
    alone = {
        name: int((table[table["removed"] == name]["low"] > chance).sum())
        for name in ("all products", "all shortcuts and poolings")
    }
    claim = (
        f"Above chance remain {alone['all products']} of {models} models without their products, "
        f"{alone['all shortcuts and poolings']} without their shortcuts and poolings"
    )
    wide = table.pivot(index="label", columns="removed", values="accuracy")
    single = wide.drop(columns=["nothing", *alone], errors="ignore").sub(wide["nothing"], axis=0).median()
    half = (table["high"] - table["low"]).max() / 2
    return claim, (
        f"Of single groups, the {single.idxmin()} cost most ({single.min():+.1f} points in the median model) and the "
        f"{single.idxmax()} least ({single.max():+.1f}). Batch-norm statistics are re-estimated on {estimated_on} "
        f"after each removal; differences below {half:.1f} points rank nothing."
    )


def of_stages(table: pd.DataFrame, estimated_on: str) -> tuple[str, str]:
    """Claim and finding: which stage's branches cost most."""
    intact = table[table["removed"] == "nothing"].set_index("run")["accuracy"]
    removed = table[table["removed"] != "nothing"]
    change = removed.assign(change=removed["accuracy"] - removed["run"].map(intact))
    single = change[~change["removed"].str.startswith("all ")]
    worst = single.groupby(["removed", "part"])["change"].median()
    group, part = worst.idxmin()
    claim = f"Of single groups, the {group} of stage {part.removeprefix('stages.')} cost most"
    products = change[change["removed"] == "all products"].groupby("part")["change"].median()
    stages = ", ".join(f"{value:+.0f} in stage {name.removeprefix('stages.')}" for name, value in products.items())
    half = (table["high"] - table["low"]).max() / 2
    return claim, (
        f"They cost {worst.min():+.0f} points in the median model; all products of one stage cost {stages}. Statistics "
        f"are re-estimated on {estimated_on}; differences below {half:.1f} points rank nothing."
    )
