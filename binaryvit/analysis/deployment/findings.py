"""What the numbers on a deployed run say."""

import pandas as pd


def bytes_finding(table: pd.DataFrame) -> str:
    """Of `measure.file_bytes`: file and cost table."""
    whole, scales = table.iloc[-1], table.set_index("part").loc["mantissas of the scales"]
    more = whole["stored"] / whole["counted"] - 1
    return (
        f"The file has {whole['stored'] / 1e6:.3f} MB, {more:.1%} more than the {whole['counted'] / 1e6:.3f} MB in the "
        f"cost table. The scales take {scales['stored'] / whole['counted']:.1%}; the table counts them as folded away."
    )


def equality_finding(identical: int, images: int) -> str:
    """Of `measure.identical_logits`."""
    share = f"all {images:,}" if identical == images else f"{identical:,} of {images:,}"
    return f"The logits of {share} images are the model's, bit for bit."


def latency_finding(table: pd.DataFrame, threads: int, processor: str, instructions: str) -> str:
    """Of `measure.latency`: the whole, and the part that takes longest."""
    packed, simulated = table["packed"].sum(), table["simulated"].sum()
    longest = table.loc[table["packed"].idxmax()]
    return (
        f"With {threads} thread{'s' if threads > 1 else ''} of {processor} ({instructions}), one image takes "
        f"{packed:.2f} ms packed and {simulated:.1f} ms by the modules, {simulated / packed:.0f} times as long. "
        f"The slowest part, {longest['part']}, takes {longest['packed'] / packed:.0%} of the packed time."
    )
