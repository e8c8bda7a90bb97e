"""The one exception that is meant for the user, and what its sentences share."""

import difflib


class BinaryViTError(Exception):
    """A mistake or a condition the user can act on.

    Its text is a complete sentence that says what was wrong, where, and what to do. The command line prints the text
    alone; in a notebook it is the last line of the traceback.
    """


def suggestion(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name: `: did you mean ...?`, or a full stop when nothing is close."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f": did you mean {close[0]!r}?" if close else "."
