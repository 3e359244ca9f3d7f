"""``expunge``: the entry point, and what becomes of errors and interruptions."""

from __future__ import annotations

import errno
import inspect
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from expunge import __version__
from expunge.cli import ask, combine, demo, evaluate, listing, report, run, sample, search, unlearn, validate
from expunge.errors import ExpungeError, memory_error

MISTAKE = 2
"""Exit code of everything that the user can mend."""

COMMANDS = {
    "demo": demo,
    "run": run,
    "validate": validate,
    "list": listing,
    "unlearn": unlearn,
    "combine": combine,
    "evaluate": evaluate,
    "ask": ask,
    "sample": sample,
    "search": search,
    "report": report,
}

RESUMABLE = ("demo", "run")
INTERRUPTED = "interrupted; what was finished is kept. Run the same command again to continue."

_DISK = {
    errno.ENOSPC: "the disk is full. Make room and run the same command again",
    errno.EDQUOT: "your disk quota is used up. Make room and run the same command again",
    errno.EROFS: "that place is read-only. Choose another with --directory or --output",
}

_UsageError: Any = typer.BadParameter.__base__  # typer brings its own click since 0.26; this is either's

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with:  expunge demo",
)
for _name, _module in COMMANDS.items():
    _text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(_module.command) or "")  # the terminal wraps
    app.command(_name, help=_text, epilog=f"Example:  {_module.EXAMPLE}")(_module.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Machine unlearning that can be verified.

    Makes a trained model forget examples, and measures against retrained models whether it has.

    An experiment is one YAML file; its values can be set on the command line as key=value. What it can name
    is shown by: expunge list. Models that were made elsewhere are judged by: expunge evaluate.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, or 2 for what the user can mend.

    Mistakes and interruptions are one line on stderr. Any other exception is a bug and keeps its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    _never_fail_to_encode()
    try:
        with _undisturbed(), command.make_context("expunge", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except ExpungeError as error:
        return _say(f"error: {error}")
    except _UsageError as error:
        return _say(f"error: {error.format_message()}{_see(error)}")
    except KeyboardInterrupt:
        return _say(INTERRUPTED if words[0] in RESUMABLE else "interrupted; nothing was written.")
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the flush at exit
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f"'{error.filename}': " if error.filename else ""
        return _say(f"error: {place}{_DISK[error.errno]}.")
    except (MemoryError, RuntimeError) as error:
        full = memory_error(error)
        if full is None:
            raise
        return _say(f"error: {full}")
    return 0


def _say(message: str) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return MISTAKE


def _see(error: Any) -> str:
    """Where to read on: the help of the command that was mistyped."""
    path = getattr(getattr(error, "ctx", None), "command_path", "expunge")
    return f" See: {path} --help"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps torch's warnings to its callers from the user, and treats SIGTERM as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch(\.|$)")
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _never_fail_to_encode() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(main())
