"""`studio`: parse -> one call -> print. Every command is thin over a function that the app calls too."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from registry.errors import StudioError
from studio import __version__
from studio.commands import (
    adapters,
    bases,
    cluster,
    compare,
    datasets,
    evidence,
    jobs,
    operations,
    provenance,
    recipes,
    runs,
)
from studio.commands.shared import PlaceOption, clean, invocation

app = typer.Typer(
    name="studio",
    help="Train LoRA adapters for diffusion models, and keep, compare and hand on what comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (bases, datasets, recipes, runs, adapters, compare, cluster):
    app.add_typer(group.app)
for command in operations.COMMANDS:
    adapters.app.command()(command)
for command in (*jobs.COMMANDS, runs.train, compare.compare, evidence.evaluate):
    app.command()(command)
for owner, name, command in provenance.COMMANDS:
    owner.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"LoRA Studio {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    home: Annotated[Path | None, PlaceOption(help="Workspace folder; default: STUDIO_HOME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,  # noqa: ARG001
) -> None:
    """Global options; they work before and after the command."""
    invocation.home, invocation.json = home, json


def hoist_global_options(arguments: Sequence[str]) -> list[str]:
    """Move --json and --home to the front, where the parser expects them; what follows `--` is left alone."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--json" or word.startswith("--home="):
            front.append(word)
        elif word == "--home":
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


def run(arguments: Sequence[str]) -> int:
    """Run one command line; exit code 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    command = get_command(app)
    try:
        code = command.main(hoist_global_options(arguments), prog_name="studio", standalone_mode=False)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except StudioError as error:
        return _complain(str(error), error.exit_code, error)
    except OSError as error:
        return _complain(_system_fault(error), 1, error)
    except Exception as error:  # noqa: BLE001  the last line before the person: one line, never a traceback
        if type(error).__name__ == "Abort":
            return _complain("interrupted", 130)
        if hasattr(error, "format_message"):
            return _usage(error)
        what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        return _complain(f"{what}. Set STUDIO_DEBUG=1 to see where.", 1, error)
    if code == 130:  # the parser's own answer to Ctrl-C
        return _complain("interrupted", 130)
    return code if isinstance(code, int) else 0


def _system_fault(error: OSError) -> str:
    """A fault of the operating system that no room has put into words."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    if error.filename is None:
        return f"this machine: {reason}. Set STUDIO_DEBUG=1 to see where."
    return f"{os.fsdecode(error.filename)}: cannot be used ({reason}). Check the path and its permissions."


def _usage(error: Any) -> int:
    """The parser's own errors: help for a group without a command, else one line."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{error.format_message()}\n")
        return 2
    where = getattr(getattr(error, "ctx", None), "command_path", "studio")
    message = error.format_message().rstrip(".")
    end = "" if message.endswith("?") else "."
    return _complain(f"{where}: {message}{end} See `{where} --help`.", 2, error)


def _complain(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("STUDIO_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"error: {clean(message)}\n")
    return code


def main() -> None:
    """Entry point of the console script."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  `>&-` leaves no file at all
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  for the whole process
        sys.exit(_complain("stdout: is closed.", 1))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without the letters gets their numbers
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
        if not isinstance(error, BrokenPipeError):  # else the reader went away: `studio runs list | head`
            _complain(f"stdout: cannot be written ({(error.strerror or str(error)).lower()}).", 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
