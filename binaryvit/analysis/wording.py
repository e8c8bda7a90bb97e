"""The wording that all findings share."""

from collections.abc import Callable, Iterable

import pandas as pd


def listed(words: Iterable[object]) -> str:
    """The words as an enumeration: "a", "a and b", "a, b and c"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def two_digits(number: float) -> str:
    """Two significant digits, and never fewer than all before the point: "0.25", "1.7", "230"."""
    return f"{number:.2g}" if abs(number) < 99.5 else f"{number:,.0f}"


def span(numbers: pd.Series, form: str | Callable[[float], str]) -> str:
    """The range of numbers, each in a format of `str.format` or as a function writes it: "1.5 to 3.0".

    Where both ends read alike it is one number.
    """
    write = form.format if isinstance(form, str) else form
    return " to ".join(dict.fromkeys(write(number) for number in (numbers.min(), numbers.max())))
