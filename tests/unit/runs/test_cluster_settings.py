"""`studio cluster`, and what studio.toml has afterwards."""

import io
from pathlib import Path

import pytest

from studio.settings import Settings
from studio.workspace import Workspace
from tests.support.cli import Studio
from tests.support.supervision import make_dataset

TOKEN = "cluster-password"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    Workspace.open(home)
    (home / "studio.toml").write_text("# Emptied by hand.\ntrash_days = 0\n")
    return home


def test_the_cluster_is_set_and_its_token_shown_to_nobody(home: Path, monkeypatch: pytest.MonkeyPatch):
    studio = Studio(home)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    said = studio("cluster", "set", "http://head:8265", "--storage", "/mnt/studio", "--runs", 100, "--token")
    assert said["address"] == "http://head:8265"
    assert said["token"] == "set"
    assert TOKEN not in str(said)
    text = (home / "studio.toml").read_text()
    assert text.startswith("# Emptied by hand.\ntrash_days = 0\n")
    assert (home / "studio.toml").stat().st_mode & 0o777 == 0o600
    settings = Settings.load(home)
    assert (settings.ray_token, settings.ray_storage, settings.ray_runs) == (TOKEN, "/mnt/studio", 100)
    assert settings.trash_days == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert studio("cluster", "set", "", "--storage", "", "--token")["token"] == "not set"
    assert "ray_" not in (home / "studio.toml").read_text().replace("ray_runs", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("head:8265",), "ray_address: must be the address of a dashboard, as http://HOST:8265"),
        (("http://name:word@head:8265",), "ray_address: must be the address of a dashboard"),
        (("http://head:8265", "--storage", "mnt"), "ray_storage: must be a path that begins with /"),
        (("http://:8265",), "ray_address: must be the address of a dashboard"),
        (("http://head:99999999",), "ray_address: must be the address of a dashboard"),
        (("http://head:8265", "--storage", "/"), "ray_storage: must be a path that begins with /"),
        ((), "studio cluster set: was given nothing to set"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(home: Path, words: tuple[str, ...], said: str):
    before = (home / "studio.toml").read_text()
    assert said in Studio(home)("cluster", "set", *words, code=2)
    assert (home / "studio.toml").read_text() == before


def test_the_environment_wins_and_says_so(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDIO_RAY_ADDRESS", "http://other:8265")
    said = Studio(home)("cluster", "set", "http://head:8265", code=2)
    assert "ray_address: comes from the environment" in said
    assert Settings.load(home).ray_address == "http://other:8265"


def test_without_a_cluster_nothing_is_sent_there(home: Path):
    studio = Studio(home)
    make_dataset(Workspace.open(home))
    assert "Ray cluster: is not set up. set its address" in studio("cluster", "show", code=1)
    assert "Ray cluster: is not set up" in studio("train", "--dataset", "shapes", "--on", "ray", code=2)
    words = ("train", "--dataset", "shapes", "--on", "ray", "--forecast")
    assert "Ray cluster: is not set up" in studio(*words, code=2)
    run = studio("train", "--dataset", "shapes", "--set", "train.max_steps=2")
    assert run["place"] == "local"
    studio("runs", "stop", run["id"])
    assert "Ray cluster: is not set up" in studio("runs", "resume", run["id"], "--on", "ray", code=2)
    assert studio("runs", "resume", run["id"])["place"] == "local"
