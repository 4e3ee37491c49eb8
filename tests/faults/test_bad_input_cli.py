"""Bad input through the command line: one line on stderr, the right exit code, nothing half-written."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.main import get_command

from registry.catalog import Catalog
from registry.errors import StudioError
from registry.records import Dataset, Image, Sample
from studio import adapters as adapters_module
from studio.cli import app, run
from studio.sampling import submit as submit_module
from studio.workspace import Workspace
from tests.support.cli import call_here
from tests.support.pictures import encoded, pixels
from tests.support.sampling import add_adapter

LONG = "x" * 300  # longer than a file name may be


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(pixels(number, 64, 64)))
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def studio(home):
    """studio(*words) -> (exit code, stdout, stderr), in this process."""
    return partial(call_here, home)


@pytest.fixture
def refused(studio):
    """refused(code, *words) -> the one line of the error, without "error: "."""

    def call(code, *words):
        got, out, err = studio(*words)
        assert (got, out) == (code, ""), (got, out, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert "STUDIO_DEBUG" not in err, err
        return err.removeprefix("error: ").rstrip("\n")

    return call


@pytest.fixture
def cat(studio, pictures):
    assert studio("datasets", "add", "cat", pictures)[0] == 0


@pytest.fixture
def ink(home):
    return add_adapter(Workspace.open(home), "ink")


# -- options and paths


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runs", "list", "--state", "nope"], "state 'nope': is unknown. use one of queued, starting,"),
        (["recipes", "show", "nope"], "recipe 'nope': is not shipped. see `studio recipes list`."),
        (["recipes", "show", "sdxl"], "'sdxl': is not shipped. there is sdxl-character, sdxl-concept, sdxl-"),
        (["trian"], "No such command 'trian'. Did you mean 'train'? See `studio --help`."),
        (
            ["train", "--dataset", "."],
            "is a folder, not a data set. make one: studio datasets add NAME ., ",
        ),
        (["train"], "--dataset: is missing. make one: studio datasets add NAME FOLDER."),
        (["sample", "--prompt", "x", "--out", "o", "--size", "\u00b2x64"], "is not WIDTHxHEIGHT"),
        (["sample", "--prompt", "x", "--out", "o", "--cfg", "nan"], "less than or equal to 50. See `studio"),
        (["sample", "--prompt", "\ud800", "--out", "o"], "valid string"),
        (["sample", "--prompt", "x" * 20_000, "--out", "o"], "at most 10000 characters"),
        (["datasets", "add", "x", "file:///etc"], "is a web address"),
        (["datasets", "add", "x", "~nobody-of-that-name/x"], "has no home folder"),
        (["bases", "add", "x", "~nobody-of-that-name/x"], "has no home folder"),
    ],
)
def test_bad_values_name_value_and_way_out(refused, words, says):
    line = refused(2, *words)
    assert says in line
    assert len(line) < 500


def test_paths_too_long_for_the_system_are_one_line(studio, tmp_path, capsys):
    for words in (
        ["--home", str(tmp_path / LONG), "bases", "list"],
        ["--home", "~nobody-of-that-name", "runs", "list"],
    ):
        assert run(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert "STUDIO_DEBUG" not in captured.err


def test_a_recipe_that_is_a_pipe_or_device_is_refused_at_once(refused, cat, tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", "/dev/zero"):
        assert "is not a plain file" in refused(2, "train", "--dataset", "cat", "--forecast", path)


def test_pictures_go_into_a_folder_and_not_into_a_file(refused, home, tmp_path):
    file = tmp_path / "there.png"
    file.write_bytes(b"mine")
    for out in (file, file / "below" / "it"):
        assert refused(2, "sample", "--prompt", "x", "--out", out) == (
            f"{file}: is not a folder. give a folder for the pictures."
        )
    assert file.read_bytes() == b"mine"
    assert Workspace.open(home).catalog.list(Sample) == []


def test_a_data_set_in_the_place_of_a_recipe_and_a_base_that_is_not_there_say_what_to_do(refused, cat):
    assert refused(2, "train", "cat") == (
        "cat: is a data set, and a recipe is expected there. write --dataset cat."
    )
    assert "name one of `studio datasets list`" in refused(2, "train")
    assert refused(2, "train", "--dataset", "cat", "--base", "sdxl") == (
        "base 'sdxl': does not exist. there is pocket-flux, pocket-sd35, pocket-xl, pocket; "
        "add it with `studio bases add NAME LOCATION`."
    )


def test_a_preset_is_found_by_family_and_goal(studio):
    assert studio("recipes", "show", "sd15/style") == studio("recipes", "show", "sd15-style")


def test_errors_of_the_system_are_one_line_too(refused, ink, home, tmp_path):
    assert refused(1, "adapters", "export", "ink", "--out", tmp_path / LONG).endswith(
        "cannot be used (file name too long). Check the path and its permissions."
    )
    (home / "studio.toml").mkdir()
    assert "is a directory" in refused(1, "runs", "list")


def test_an_unexpected_error_stays_one_line(monkeypatch, refused, capsys):
    def fail(*_, **__):
        raise ValueError("first\nsecond")

    monkeypatch.setattr(Workspace, "open", fail)
    assert run(["runs", "list"]) == 1
    assert capsys.readouterr().err == "error: ValueError: first second. Set STUDIO_DEBUG=1 to see where.\n"


def test_every_command_that_a_message_names_exists():
    command = get_command(app)
    known = {(name,) for name in command.commands} | {
        (name, leaf) for name, group in command.commands.items() for leaf in getattr(group, "commands", {})
    }
    root = Path(__file__).parents[2]
    files = [
        *(root / "studio").rglob("*.py"),
        *(root / "registry").rglob("*.py"),
        *(root / "trainers").rglob("*.py"),
    ]
    for file in files:
        for words in re.findall(r"[`\"]studio ([a-z]+(?: [a-z]+)?)", file.read_text()):
            first, *rest = words.split()
            if hasattr(command.commands.get(first), "commands") and rest:
                assert (first, rest[0]) in known, f"{file}: studio {words}"
            else:
                assert (first,) in known, f"{file}: studio {words}"


# -- stdout


def studio_process(home, *words, **options):
    return subprocess.run(
        [sys.executable, "-m", "studio.cli", "--home", str(home), *words],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_a_terminal_that_cannot_show_a_name_still_shows_the_list(home, pictures, studio):
    assert studio("datasets", "add", "\u0645\u0631\u062d\u0628\u0627", pictures)[0] == 0
    for extra in ([], ["--json"]):
        done = studio_process(
            home,
            "datasets",
            "list",
            *extra,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["image_count"] == 3


def test_a_full_or_closed_stdout_is_one_line_and_exit_1(home):
    with Path("/dev/full").open("w") as full:
        done = studio_process(home, "recipes", "list", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    closed = studio_process(home, "recipes", "list", preexec_fn=lambda: os.close(1))
    assert (closed.returncode, closed.stderr) == (1, "error: stdout: is closed.\n")


def test_ctrl_c_says_so(home, pictures, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("studio.datasets.ingest.create_dataset", interrupt)
    assert run(["--home", str(home), "datasets", "add", "x", str(pictures)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


# -- data sets


def test_one_picture_is_not_pictures(studio, pictures):
    code, out, _ = studio("datasets", "add", "one", pictures / "0.png")
    assert (code, out) == (0, "Data set one: 1 picture, 1 without a caption.\n")


def test_a_caption_file_that_is_too_large_is_not_to_be_scaled_down(studio, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(pixels(1, 64, 64)))
    (folder / "a.txt").write_text("word " * 100_000)
    code, _, err = studio("datasets", "add", "big", folder)
    assert code == 0
    assert err == "left out a.txt: has 488 kB, more than 256 kB. shorten it.\n"


def test_a_folder_whose_name_is_no_text_still_becomes_a_data_set(studio, home, tmp_path):
    folder = os.fsencode(tmp_path) + b"/s\xff"
    os.mkdir(folder)  # noqa: PTH102  pathlib has no bytes
    with open(folder + b"/a.png", "wb") as stream:  # noqa: PTH123  a name that is no text
        stream.write(encoded(pixels(1, 64, 64)))
    assert studio("datasets", "add", "odd", os.fsdecode(folder))[0] == 0
    assert Workspace.open(home).catalog.get(Dataset, "odd").source.endswith("/s\ufffd")


def test_pictures_whose_file_is_gone_or_empty_are_named_before_a_run(studio, refused, cat, home):
    ws = Workspace.open(home)
    gone, cut, _ = ws.catalog.list(Image, order="position")
    ws.blobs.path(gone.blob).unlink()
    os.truncate(ws.blobs.path(cut.blob), 0)
    code, out, _ = studio("datasets", "check", "cat", "--json")
    bad = [finding for finding in json.loads(out) if finding["severity"] == "bad"]
    assert code == 0
    assert [(f["code"], f["images"]) for f in bad] == [("lost", [gone.id, cut.id])]
    for picture in (gone, cut):
        assert f"picture {picture.name}: of data set cat has lost its file" in refused(
            2, "train", "--dataset", "cat"
        )
        ws.blobs.path(picture.blob).write_bytes(b"x")


@pytest.mark.parametrize("tag", ["", "a\nb", "x" * 101, "\u202e"])
def test_tags_are_names(refused, ink, tag):
    assert refused(2, "adapters", "tag", "ink", tag).startswith("tag ")


# -- adapters


def change_header(file: Path, change) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header, sorted(key for key in header if key != "__metadata__"))
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def overlapping(header, names):
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (b"", "download or copy it again"),
        (b"\x80\x04\x95abc", "ask its author for a .safetensors file"),
        (b"<!doctype html>", "log in at the site it came from and download it again"),
        (overlapping, "download or copy it again"),
    ],
)
def test_a_damaged_file_is_changed_and_named_by_verify_export_and_sample(
    studio, refused, home, ink, tmp_path, damage, hint
):
    file = home / ink.path
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        change_header(file, damage)
    code, out, _ = studio("adapters", "verify", "ink")
    assert (code, out.startswith("ink: changed. ")) == (1, True)
    assert out.endswith(f". {hint}\n")  # what is done about a moved file helps nobody here
    line = refused(1, "adapters", "export", "ink", "--out", tmp_path / "x.safetensors")
    assert "has changed: " in line
    assert line.rstrip(".\n").endswith(hint)
    assert refused(1, "sample", "--adapter", "ink", "--prompt", "x", "--out", tmp_path / "o") == line
    assert not (tmp_path / "x.safetensors").exists()


def test_a_flipped_bit_is_noticed_before_a_picture_is_drawn(refused, home, ink, tmp_path):
    file = home / ink.path
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    assert "are not those that were registered" in refused(
        1, "sample", "--adapter", "ink", "--prompt", "x", "--out", tmp_path / "o"
    )


def test_verify_offers_the_way_back_and_refuses_a_folder(studio, refused, home, ink, tmp_path):
    (home / ink.path).unlink()
    code, out, _ = studio("adapters", "verify", "ink")
    assert code == 1
    assert out == "ink: missing. the file is not there. When it was moved: studio adapters verify ink FILE\n"
    assert "is not a file" in refused(2, "adapters", "verify", "ink", tmp_path)


def test_an_empty_search_is_not_an_empty_workspace(studio, ink):
    assert studio("adapters", "list", "zebra")[1] == "No adapter fits. See all: studio adapters list\n"


def test_the_folder_for_pictures_is_tried_before_they_are_drawn(refused, home, tmp_path, monkeypatch):
    def not_yet(*_, **__):
        raise AssertionError("queued")

    monkeypatch.setattr(submit_module, "submit", not_yet)
    (tmp_path / "file").write_text("x")
    for code, out in ((2, tmp_path / "file"), (2, tmp_path / "file" / "x"), (1, tmp_path / LONG)):
        assert str(out.parent) in refused(code, "sample", "--prompt", "x", "--out", out)
    assert (tmp_path / "file").read_text() == "x"


# -- bases


def test_a_base_folder_with_damaged_parts_is_refused(refused, home, tmp_path):
    source = Path(adapters_module.__file__).parent / "pocket" / "model"
    for number, (part, damage, says) in enumerate(
        (
            ("unet/diffusion_pytorch_model.safetensors", lambda d: d[:-50], "bytes"),
            ("text_encoder/model.safetensors", lambda _: b"", "is empty (0 bytes)"),
            ("unet/config.json", lambda _: b"{}", "does not say cross_attention_dim"),
            (
                "unet/config.json",
                lambda _: b'{"cross_attention_dim": "x"}',
                "does not say cross_attention_dim",
            ),
        )
    ):
        folder = tmp_path / f"base{number}"
        shutil.copytree(source, folder)
        file = folder / part
        file.write_bytes(damage(file.read_bytes()))
        line = refused(2, "bases", "add", "b", folder)
        assert str(file) in line
        assert says in line


def test_read_only_is_said_with_one_full_stop(home, studio, monkeypatch):
    assert studio("bases", "list")[0] == 0
    catalog = Catalog.open(f"sqlite:///{home / 'catalog.sqlite'}")
    catalog.read_only, catalog.reason = True, "/x: was opened read-only. writing needs permission for it."
    with pytest.raises(StudioError) as refusal:
        catalog.add(Dataset(name="x"))
    assert (
        str(refusal.value)
        == "catalog: is read-only. /x: was opened read-only. writing needs permission for it."
    )
