"""The command line: parse, call one function, print."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nextreid.version import __version__

from . import captions, convert, data, demo, evaluate, export, extract, models, train

# Packages are imported inside the commands, so that each loads what it needs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status, 0 as a rule, or 2 for an error that the message explains."""
    return run_command(_parser(), argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments of a parser that `Commands` filled, run the command, print an error as one line."""
    args = parser.parse_args(argv)
    level = logging.DEBUG if args.verbose > 1 else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone, which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, KeyError, OSError, FloatingPointError, ImportError) as error:
        if args.verbose > 1:
            raise
        print(f"{parser.prog} {args.command}: {_message(error)}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:  # torch wraps what a loader's worker raised
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


class Commands:
    """Adds commands to a parser, and groups of commands such as ``nextreid data check``."""

    def __init__(self, parser: argparse.ArgumentParser, dest: str) -> None:
        self._subparsers = parser.add_subparsers(dest=dest, required=True, metavar=dest.upper())

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace], int | None], help: str, **kwargs: Any
    ) -> argparse.ArgumentParser:
        """Add a command that calls `run` with its arguments; return its parser."""
        parser = self._add(name, help, **kwargs)
        parser.add_argument("-v", "--verbose", action="count", default=0, help="print more; twice for tracebacks")
        parser.set_defaults(run=run)
        return parser

    def group(self, name: str, help: str, **kwargs: Any) -> "Commands":
        """Add a command that only holds others."""
        return Commands(self._add(name, help, **kwargs), "subcommand")

    def _add(self, name: str, help: str, **kwargs: Any) -> argparse.ArgumentParser:
        return self._subparsers.add_parser(
            name, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nextreid",
        description="Multi-modal object re-identification: RGB, near-infrared and thermal images with captions.",
        epilog="'nextreid COMMAND --help' lists the options of a command. 'nextreid demo' needs none.",
    )
    parser.add_argument("--version", action="version", version=f"nextreid {__version__}")
    commands = Commands(parser, "command")
    for module in (demo, train, evaluate, extract, export, models, convert, data, captions):
        module.add(commands)
    return parser
