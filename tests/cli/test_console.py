"""The command line as a whole: what it loads, what it proposes for a typo, and that every print succeeds."""

# ruff: noqa: T201 (what is printed is the subject)

import argparse
import io
import json
import os
import subprocess
import sys

import pytest

import nextreid
from nextreid.cli import Commands, Parser, main, run_command

HEAVY = ("torch", "numpy", "timm", "open_clip", "PIL")


def test_help_and_lists_load_nothing_heavy():
    code = f"""
import contextlib, io, json, sys
from nextreid.cli import _parser, main

def commands(parser, words=()):
    yield [*words, "--help"]
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for name, child in action.choices.items():
            yield from commands(child, (*words, name))

done = []
for words in [["--version"], *commands(_parser()), ["models"], ["models", "--pretrained", "next*"], ["data", "list"]]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(words)
    assert out.getvalue(), words
    done.append(" ".join(words))
print(json.dumps([done, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    done, loaded = json.loads(out)
    assert loaded == [] and {"train --help", "data check --help", "captions audit --help"} <= set(done)


@pytest.mark.parametrize("words", [[], ["next_*"], ["next_tiny.*", "unicat*"]])
def test_models_are_those_of_the_registry(words, capsys):
    """The command reads them from the source of the model files."""
    assert main(["models", *words]) == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in listed] == nextreid.list_models(words)
    for name, summary in listed:
        assert summary == nextreid.model_entrypoint(name).__doc__.strip().splitlines()[0]
    assert main(["models", "--pretrained", *words]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == nextreid.list_pretrained(words)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean train?"),
        (["data", "chekc"], "did you mean check?"),
        (["train", "--modle", "next_tiny"], "--modle: did you mean --model"),
        (["eval", "x", "--dataset", "y", "--bootstrp=5"], "--bootstrp: did you mean --bootstrap?"),
        (["eval", "x", "--dataset", "y", "--on-error", "skpi"], "did you mean skip?"),
        (["--verison"], "--verison: did you mean --version?"),
    ],
)
def test_typos_get_a_proposal(words, hint, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2 and hint in capsys.readouterr().err


def test_no_proposal_where_nothing_is_near(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--quux"])
    assert "did you mean" not in capsys.readouterr().err


def run(monkeypatch, stream, command):
    """The status of a command line of one command, whose output goes to a stream."""
    monkeypatch.setattr(sys, "stdout", stream)
    parser = Parser(prog="test")
    Commands(parser, "command")("go", command, "Go.")
    status = run_command(parser, ["go"])
    assert sys.stdout is stream
    return status


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "cp437"])
def test_any_text_can_be_printed(encoding, monkeypatch):
    raw = io.BytesIO()

    def command(args: argparse.Namespace) -> int:
        print("a name: 坏 é \udc80 \U0001f600 ± end")
        return 1

    assert run(monkeypatch, io.TextIOWrapper(raw, encoding=encoding), command) == 1
    assert raw.getvalue().startswith(b"a name: ") and raw.getvalue().rstrip().endswith(b" end")
    assert b"\\udc80" in raw.getvalue()


def test_a_closed_pipe_ends_neither_the_work_nor_its_status(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    done = []

    def command(args: argparse.Namespace) -> int:
        for number in range(20_000):
            print("a line that nobody reads", number)
        done.append(True)
        return 1

    with open(writer, "w") as stream:
        assert run(monkeypatch, stream, command) == 1
    assert done


def test_other_errors_of_a_stream_are_errors(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    assert run(monkeypatch, Full(), lambda args: print("x")) == 2
    assert "No space left" in capsys.readouterr().err


def test_an_endless_message_is_cut(monkeypatch, capsys):
    def command(args: argparse.Namespace) -> int:
        raise ValueError("x" * 10**6)

    assert run(monkeypatch, io.StringIO(), command) == 2
    assert len(capsys.readouterr().err) < 5000
