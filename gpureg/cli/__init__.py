"""The command line: `gpureg check`, `report`, `diff` and `demo`, one module a command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import gpureg

_COMMANDS = {
    "check": "say what is installed and usable, and test that every backend gives the known bits",
    "report": "say what norms, zeros and penalties the tensors of a checkpoint have",
    "diff": "say how the tensors of two checkpoints differ",
    "demo": "show the fused pass on large weights, and regularize a real network on real digits",
}

_EPILOG = """\
examples:
  gpureg check                         is this installation right?
  gpureg report model.safetensors      which tensors carry the norm, which are sparse?
  gpureg diff old.pt new.pt            what changed between two checkpoints?
  gpureg demo                          both demonstrations, about a minute
  gpureg COMMAND --help                what a command can do, with examples

exit status: 0 all is well; 1 a check failed, or checkpoints differ; 2 the command line is wrong, a file cannot be read
or something is not installed; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit status."""
    arguments = parser().parse_args(argv)
    try:
        status = int(import_module(f"gpureg.cli.{arguments.command}").run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough. Standard output goes, so that its flush at exit cannot fail too.
        sys.stdout = None
        return 141  # as a shell has it of a program that the pipe's end has stopped
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # no room for the output, say
        sys.stderr.write(f"gpureg: {error}\n")
        return 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="gpureg",
        description=gpureg.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"gpureg {gpureg.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        import_module(f"gpureg.cli.{name}").add_arguments(command)
    return top
