"""Settings: file, environment, errors that name both, secrets that are not shown."""

import pytest

from registry.errors import BadInput
from studio.settings import Settings, tokens_present


def test_defaults_file_and_environment_in_this_order(tmp_path, monkeypatch):
    assert Settings.load(tmp_path) == Settings()
    (tmp_path / "studio.toml").write_text("trash_days = 7\nbackups = 3\n")
    assert (Settings.load(tmp_path).trash_days, Settings.load(tmp_path).backups) == (7, 3)
    monkeypatch.setenv("STUDIO_TRASH_DAYS", "9")
    assert (Settings.load(tmp_path).trash_days, Settings.load(tmp_path).backups) == (9, 3)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("trash_day = 7", r"studio.toml: has no setting 'trash_day'. did you mean trash_days."),
        (
            "colour = 7",
            r"has no setting .colour.. use one of database_url, password_hash, api_token, trash_days",
        ),
        ("trash_days = -1", r"studio.toml: trash_days: input should be greater than or equal to 0."),
        ("trash_days = 'soon'", r"studio.toml: trash_days: input should be a valid integer"),
        ("trash_days = 7\ntrash_days = 8", r"studio.toml: is not TOML"),
        ("\udcff", r"studio.toml: is not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_field_and_remedy(tmp_path, text, wrong):
    (tmp_path / "studio.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=wrong):
        Settings.load(tmp_path)


def test_a_wrong_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_BACKUPS", "many")
    with pytest.raises(BadInput, match=r"^environment STUDIO_BACKUPS: input should be a valid integer"):
        Settings.load(tmp_path)


def test_secrets_do_not_show(tmp_path, monkeypatch):
    (tmp_path / "studio.toml").write_text(
        'database_url = "postgresql://me:secret@host/x"\npassword_hash = "scrypt$secret"\n'
    )
    assert "secret" not in repr(Settings.load(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("CIVITAI_TOKEN", raising=False)
    assert tokens_present() == {"HF_TOKEN": True, "CIVITAI_TOKEN": False, "WANDB_API_KEY": False}
