"""The one exception that is meant for the user."""


class BinaryViTError(Exception):
    """A mistake or a condition the user can act on.

    Its text is a complete sentence that says what was wrong, where, and what to do. The command line prints the text
    alone; in a notebook it is the last line of the traceback.
    """
