"""The command line's own promises; what the commands do is tested where it is done."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from studio.cli import app, hoist_global_options, run
from studio.commands.shared import clean, plain
from studio.docs import cli_page


def leaves(command, path="studio"):
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


@pytest.mark.parametrize(("path", "command"), list(leaves(get_command(app))))
def test_every_command_is_documented_with_an_example(path, command):
    assert "Example:" in (command.help or ""), path
    example = command.help.partition("Example:")[2].strip()
    assert example.startswith(path), example
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{path} {parameter.opts}"


def test_the_page_of_commands_says_what_is_required():
    pages = cli_page().split("\n## ")
    sample = next(page for page in pages if page.startswith("studio sample\n"))
    rows = [line for line in sample.splitlines() if line.startswith(("| `--out`", "| `--prompt`"))]
    assert [row.endswith("| required |") for row in rows] == [True, False]


def test_the_package_is_the_command_line():
    command = [sys.executable, "-m", "studio", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.split("'")[0]) == (2, "error: studio: No such command ")


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["bases", "list", "--json"], ["--json", "bases", "list"]),
        (["runs", "--home", "/x", "list"], ["--home", "/x", "runs", "list"]),
        (["runs", "list", "--home=/x"], ["--home=/x", "runs", "list"]),
        (["a", "--", "--json"], ["a", "--", "--json"]),
        (["a", "--home"], ["--home", "a"]),
    ],
)
def test_global_options_work_before_and_after_the_command(given, parsed):
    assert hoist_global_options(given) == parsed


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["bases", "lits"],
        ["sample"],
        ["sample", "--prompt", "x", "--out", "y", "--steps", "0"],
        ["adapters", "rate", "x", "six"],
        ["bases", "show", "nothing-here"],
        ["datasets", "add", "x", "/nowhere"],
        ["train", "--dataset", "nothing-here"],
        ["--home", "", "bases", "list"],
        ["adapters", "export", "x", "--out", ""],
        ["sample", "--prompt", "x", "--out", " "],
        ["sample", "--prompt", "x", "--out", "y", "--save-mix", ""],
        ["demo", "--out="],
        ["sample", "--prompt", "x", "--out=~nobody-at-all/x"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments, tmp_path, capsys):
    assert run(["--home", str(tmp_path / "home"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err


def test_json_is_one_document_in_both_places(tmp_path, capsys):
    documents = []
    for arguments in (["--json", "bases", "list"], ["bases", "list", "--json"]):
        assert run(["--home", str(tmp_path / "home"), *arguments]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    assert {base["name"] for base in documents[0]} == {"pocket", "pocket-xl", "pocket-sd35", "pocket-flux"}


def test_debug_shows_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STUDIO_DEBUG", "1")
    assert run(["--home", str(tmp_path / "home"), "bases", "show", "nothing"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_foreign_names_do_not_drive_the_terminal():
    assert clean("a\x1b[31mred\u202eb") == "a\ufffd[31mred\ufffdb"


def test_plain_turns_paths_and_sets_into_json():
    assert json.dumps(plain({"a": Path("/x"), "b": (1, 2.5, None)})) == '{"a": "/x", "b": [1, 2.5, null]}'


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick_and_loads_no_torch():
    assert min(cpu_seconds("-m", "studio.cli", "--help") for _ in range(3)) <= 0.6
    check = "import sys, studio.cli\n"
    check += "bad = {'torch', 'streamlit', 'sqlalchemy', 'numpy'} & {*sys.modules}; assert not bad, bad"
    subprocess.run([sys.executable, "-c", check], check=True)
