"""looprnn's own commands, one module each: add_arguments(parser) and run(options, console)."""

import argparse
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least`, to `most` where it is given."""
    wanted = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not (text.isascii() and text.lstrip("-").isdecimal()):
            raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, got {text!r}")
        number = int(text)
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, got {number}")
        return number

    return parse
