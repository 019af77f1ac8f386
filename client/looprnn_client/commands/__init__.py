"""One module for each of looprnn-client's commands, the same two functions in each:
add_arguments(parser), and run(arguments), which gives the lines to print as they come.
"""

from argparse import ArgumentTypeError


def whole(text: str) -> int:
    """An argument's type. Raises ArgumentTypeError, or ValueError for no number at all."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{text}: wanted a whole number of at least 1")
    return value
