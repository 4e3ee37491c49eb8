"""Settings of a workspace: `studio.toml` in its folder, and `STUDIO_*` in the environment, which wins.

Tokens for other services are not settings: they stay in the environment, and `tokens_present` says only
whether they are there.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from registry.errors import BadInput
from registry.files import atomic_path

FILE = "studio.toml"
TOKENS = {
    "HF_TOKEN": "private and gated models of Hugging Face",
    "CIVITAI_TOKEN": "adapters by address from Civitai",
    "WANDB_API_KEY": "curves at Weights & Biases",
}  # and what for; read where they are used, never stored, logged or shown

PASSWORD = "STUDIO_PASSWORD"
CLUSTER_TOKEN = "STUDIO_RAY_TOKEN"  # the worker's alone: with it anybody runs programs on the cluster
_NOT_FOR_CHILDREN = (PASSWORD, "STUDIO_PASSWORD_HASH", "STUDIO_API_TOKEN", CLUSTER_TOKEN)


# A file that holds one of these is its owner's alone.
SECRET = ("database_url", "password_hash", "api_token", "ray_token")
_DASHBOARD = r"^(https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?/?)?$"
_PATTERNS = {
    "ray_address": "must be the address of a dashboard, as http://HOST:8265, without name and password",
    "ray_token": "must be of letters, digits and signs without spaces, as the cluster has it",
    "ray_storage": "must be a path that begins with /, in one line, and not / itself",
}  # in words, where pydantic would show a regular expression


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
    ray_address: Annotated[str, Field(pattern=_DASHBOARD)] = ""
    """Address of a Ray cluster's dashboard, `http://HOST:8265`; empty = runs train on this machine only."""
    ray_token: Annotated[str, Field(repr=False, pattern=r"^[!-~]*$")] = ""
    """What the cluster asks for, where it asks for a token."""
    ray_storage: Annotated[str, Field(pattern=r"^(/+[^/\x00-\x1f][^\x00-\x1f]*)?$")] = ""
    """The folder of this workspace as the nodes of the cluster see it; empty = under the same path."""
    ray_python: Annotated[str, Field(min_length=1)] = "python"
    """What starts Python with LoRA Studio on a node."""
    ray_gpus: Annotated[float, Field(ge=0, le=1)] = 1.0
    """GPUs that a training process gets; 0 on a cluster without."""
    ray_cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPU cores that a training process gets."""
    ray_runs: Annotated[int, Field(ge=1, le=10_000)] = 8
    """How many runs are handed to the cluster at a time; it starts as many as it has room for."""

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
        return cls.checked(values, f"{path}: ")

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str = "") -> "Settings":
        """Settings of these values.

        Args:
            values: As studio.toml has them.
            where: What stands before a field's name when it is wrong.

        Raises:
            BadInput: names the field or the variable.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0])
            thing = f"environment {_variable(field)}" if _variable(field) in os.environ else f"{where}{field}"
            wrong = _PATTERNS.get(field, first["msg"][0].lower() + first["msg"][1:])
            raise BadInput(thing, wrong, "correct the value") from None

    @classmethod
    def save(cls, home: Path, changes: Mapping[str, Any]) -> "Settings":
        """Change settings in studio.toml; the rest of it stays as it is, comments included.

        Args:
            home: The workspace.
            changes: By name; one that is as by default is taken out.

        Raises:
            BadInput: names the field, the environment variable that would win over it, or the file.
            StudioError: it cannot be written.
        """
        import tomlkit

        cls.load(home)
        path = home / FILE
        document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
        for name, value in changes.items():
            if _variable(name) in os.environ:
                do = f"change it there, or unset {_variable(name)}"
                raise BadInput(name, "comes from the environment, which wins over studio.toml", do)
            document.pop(name, None)
            if value != cls.model_fields[name].default:
                document[name] = value
        found = cls.checked(document.unwrap())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        if any(document.get(name) for name in SECRET):
            mode &= 0o600
        with atomic_path(path) as temporary:
            temporary.touch(mode)
            temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
        return found


def _variable(name: str) -> str:
    return f"STUDIO_{name.upper()}"


def child_environment(*keep: str) -> dict[str, str]:
    """Our environment as processes that we start may have it: without passwords, but for those to `keep`."""
    hidden = set(_NOT_FOR_CHILDREN) - set(keep)
    return {name: value for name, value in os.environ.items() if name not in hidden}


def tokens_present() -> dict[str, bool]:
    """Which tokens the environment holds."""
    return {name: bool(os.environ.get(name)) for name in TOKENS}
