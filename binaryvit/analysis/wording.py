"""The wording that all findings share."""

from collections.abc import Iterable

import pandas as pd


def listed(words: Iterable[object]) -> str:
    """The words as an enumeration: "a", "a and b", "a, b and c"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def span(numbers: pd.Series, form: str) -> str:
    """The range of numbers, each in a format of `str.format`: "1.5 to 3.0"; "1.5" where both ends read alike."""
    return " to ".join(dict.fromkeys(form.format(number) for number in (numbers.min(), numbers.max())))
