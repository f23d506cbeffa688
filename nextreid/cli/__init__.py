"""The command line: parse, call one function, print."""

import argparse
import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from nextreid._names import clip, closest
from nextreid.version import __version__

from . import (
    browse,
    calibrate,
    captions,
    convert,
    data,
    demo,
    evaluate,
    export,
    extract,
    gallery,
    models,
    serve,
    show,
    train,
)

# Packages are imported inside the commands, so that each loads what it needs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status, 0 as a rule, or 2 for an error that the message explains."""
    return run_command(_parser(), argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments of a parser that `Commands` filled, run the command, print an error as one line."""
    with _console():
        args = parser.parse_args(argv)
        level = logging.DEBUG if args.verbose > 1 else logging.INFO if args.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        try:
            return args.run(args) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (ValueError, KeyError, OSError, FloatingPointError, ImportError) as error:
            if args.verbose > 1:
                raise
            print(f"{parser.prog} {args.command}: {_message(error)}", file=sys.stderr)
            return 2


def _message(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:  # torch wraps what a loader's worker raised
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return clip(text, 2000)


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """Let every print succeed: whatever the code page of the console lacks is escaped, and a closed pipe is ignored."""
    streams = [_Stream(stream) for stream in (sys.stdout, sys.stderr) if stream is not None]
    with contextlib.ExitStack() as stack:
        for stream, redirect in zip(streams, (contextlib.redirect_stdout, contextlib.redirect_stderr), strict=False):
            stack.enter_context(redirect(stream))
            stack.callback(stream.flush)
        yield


class _Stream:
    """A text stream that escapes what its encoding lacks, and drops what is written after its reader has gone.

    So a command whose output goes to ``head`` or ``less`` does its work to the end and has its usual exit status.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._until_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_closed():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Parser(argparse.ArgumentParser):
    """A parser that proposes what a misspelled command, option or choice may have been."""

    _words: Sequence[str] = ()
    hint = ""  # what to do about an option that this command does not have

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an option that this command does not have is its own error, with its own usage."""
        self._words = sys.argv[1:] if args is None else args
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self.hint}")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        dashes = ""
        if choice := re.search(r"invalid choice: (.+) \(choose from (.+)\)$", message, re.DOTALL):
            wrong, known = [choice[1].strip("'")], re.findall(r"[^\s',]+", choice[2])
        else:
            dashes, known = "--", re.findall(r"--([\w-]+)", self.format_help())
            options = [word[2:].partition("=")[0] for word in self._words if word.startswith("--")]
            wrong = [word for word in options if not any(option.startswith(word) for option in known)]
        for word in wrong[:3]:
            if near := [dashes + name for name in closest(word, known)]:
                message += f"; {dashes}{word}: did you mean {' or '.join(near)}?"
        super().error(clip(message, 1000))


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
    parser = Parser(
        prog="nextreid",
        description="Multi-modal object re-identification: RGB, near-infrared and thermal images with captions.",
        epilog="'nextreid COMMAND --help' lists the options of a command. 'nextreid demo' needs none.",
    )
    parser.add_argument("--version", action="version", version=f"nextreid {__version__}")
    commands = Commands(parser, "command")
    for module in (
        demo,
        train,
        evaluate,
        calibrate,
        show,
        extract,
        export,
        gallery,
        serve,
        browse,
        models,
        convert,
        data,
        captions,
    ):
        module.add(commands)
    return parser
