"""The one exception for mistakes in what the user gave us."""

from __future__ import annotations


class InputError(ValueError):
    """A file, a key or a vehicle of the user's is wrong.

    The message names it, says what was expected and what to do next. The command line prints the message
    alone; every other exception is a defect of Throng and keeps its traceback.
    """
