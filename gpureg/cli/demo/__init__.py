"""`gpureg demo`: the fused pass on large weights, and regularizers at work on a real network."""

import argparse
from pathlib import Path

from gpureg.cli.common import UsageError, check_writable, complain, positive
from gpureg.cli.demo import experiment, large
from gpureg.cli.demo.common import require_extra

_MOST = 2**40
"""Elements for which `gpureg.samples` promises that two seeds have nothing in common."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("act", nargs="?", choices=("large", "digits"), help="show only this one (default: both)")
    sizes = parser.add_argument_group("large weights")
    sizes.add_argument(
        "--size",
        type=_power_of_two,
        default=large.SIZE,
        metavar="N",
        help=f"elements of the tensor, a power of two; takes 20 N bytes of memory (default: {large.SIZE})",
    )
    network = parser.add_argument_group("digits, a real network")
    network.add_argument(
        "--seeds", type=positive, default=experiment.SEEDS, metavar="N", help="trainings of each kind (default: 5)"
    )
    network.add_argument(
        "--epochs", type=positive, default=experiment.EPOCHS, metavar="N", help="epochs of a training (default: 60)"
    )
    network.add_argument(
        "--output",
        type=_png,
        default=Path("gpureg-digits.png"),
        metavar="FILE.png",
        help="where the picture goes (default: gpureg-digits.png)",
    )
    network.add_argument("--json", type=Path, metavar="FILE", help="write the table's data there too")


def run(arguments: argparse.Namespace) -> int:
    """Show the acts; return 0, 1 if a checksum differs, or 2 if something is missing."""
    try:
        if arguments.act != "large":  # before the first act, not after it
            require_extra()
            for path in filter(None, (arguments.output, arguments.json)):
                check_writable(path)
        status = large.run(arguments.size) if arguments.act != "digits" else 0
        if arguments.act is None:
            print()
        if arguments.act != "large":
            experiment.run(arguments.output, arguments.json, seeds=arguments.seeds, epochs=arguments.epochs)
    except UsageError as error:
        return complain("demo", error)
    return status


def _power_of_two(given: str) -> int:
    number = positive(given)
    if number & (number - 1) or number > _MOST:
        raise argparse.ArgumentTypeError(f"expected a power of two up to {_MOST}, such as {large.SIZE}, not {given}")
    return number


def _png(given: str) -> Path:
    if Path(given).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, not {given!r}")
    return Path(given)
