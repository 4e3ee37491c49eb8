"""Settings of a workspace: `studio.toml` in its folder, and `STUDIO_*` in the environment, which wins.

Tokens for other services are not settings: they stay in the environment, and `tokens_present` says only
whether they are there.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from registry.errors import BadInput

FILE = "studio.toml"
TOKENS = {
    "HF_TOKEN": "private and gated models of Hugging Face",
    "CIVITAI_TOKEN": "adapters by address from Civitai",
    "WANDB_API_KEY": "curves at Weights & Biases",
}  # and what for; read where they are used, never stored, logged or shown

PASSWORD = "STUDIO_PASSWORD"
_FOR_THE_APP = (PASSWORD, "STUDIO_PASSWORD_HASH", "STUDIO_API_TOKEN")


class Settings(BaseSettings):
    """What a person may set once for a workspace; every field has a default that works."""

    model_config = SettingsConfigDict(env_prefix="STUDIO_", extra="forbid", frozen=True)

    database_url: Annotated[str, Field(repr=False)] = ""
    """Where the catalog is; empty = `catalog.sqlite` in the workspace. Or `postgresql://user@host/name`."""
    password_hash: Annotated[str, Field(repr=False)] = ""
    """Password of the app when it listens beyond this machine; made by `python -m studio.app.password`."""
    api_token: Annotated[str, Field(repr=False, pattern=r"^([!-~]{16,})?$")] = ""
    """What clients of the HTTP interface have to send, 16 characters or more; needed where a password is."""
    trash_days: Annotated[int, Field(ge=0, le=3650)] = 30
    """Days after which the trash is emptied; 0 = never."""
    backups: Annotated[int, Field(ge=1, le=1000)] = 12
    """How many hourly backups of the catalog are kept; those before a schema change always are."""
    standby: Literal["auto", "on", "off"] = "auto"
    """Whether a worker keeps a trainer ready for the next run; auto = where 4 GiB of memory are free."""
    standby_minutes: Annotated[float, Field(gt=0, le=10080)] = 10.0
    """How long after a run it does."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what `load` read from the file."""
        return env_settings, init_settings

    @classmethod
    def load(cls, home: Path) -> "Settings":
        """Settings of the workspace at `home`.

        Raises:
            BadInput: with the file or variable, the field, and what is allowed.
        """
        path = home / FILE
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(str(path), f"is not TOML ({error})", "correct it or move it away") from error
        for key in values:
            if key not in cls.model_fields:
                close = difflib.get_close_matches(key, cls.model_fields, 1)
                do = f"did you mean {close[0]}" if close else f"use one of {', '.join(cls.model_fields)}"
                raise BadInput(str(path), f"has no setting {key!r}", do)
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0])
            variable = f"STUDIO_{field.upper()}"
            where = f"environment {variable}" if variable in os.environ else f"{path}: {field}"
            raise BadInput(where, first["msg"][0].lower() + first["msg"][1:], "correct the value") from None


def child_environment() -> dict[str, str]:
    """Our environment as processes that we start may have it: without the password of the app."""
    return {name: value for name, value in os.environ.items() if name not in _FOR_THE_APP}


def tokens_present() -> dict[str, bool]:
    """Which tokens the environment holds."""
    return {name: bool(os.environ.get(name)) for name in TOKENS}
