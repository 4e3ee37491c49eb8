"""What every captioner is, and where its files come from. Loaded by the child only."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from registry.errors import BadInput
from registry.files import read_json

FILES = ("*.json", "*.txt", "*.csv", "*.jinja", "*.safetensors")  # no pickles, no code
SECONDS = 15.0  # to wait for the hub's first answer
UNREACHABLE = (
    "ConnectionError",
    "ConnectError",
    "OfflineMode",
    "Timeout",
    "SocketBlocked",
    "LocalEntryNotFound",
)


class Captioner(Protocol):
    """A loaded model."""

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One text for each RGB picture, in order."""
        ...


@dataclass(frozen=True)
class Place:
    """Files of a model on this machine."""

    folder: Path
    name: str  # as the person knows it
    revision: str = ""  # commit, of a model from the hub

    def file(self, name: str) -> Path:
        """One file of it.

        Raises:
            BadInput: not there.
        """
        path = self.folder / name
        if not path.is_file():
            raise BadInput(self.name, f"has no {name}", "give a folder or hub id of a model of this kind")
        return path


def find(model: str, revision: str = "") -> Place:
    """The model's folder: as given, or fetched from the hub at one commit.

    Without a connection, what was fetched before is used.

    Raises:
        BadInput: not there, or not to be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Place(folder.resolve(), model)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise BadInput(model[:200], "is neither a folder nor a hub id (owner/name)", "check the path")
    from huggingface_hub import HfApi, snapshot_download

    commit = revision
    try:
        commit = HfApi().model_info(model, revision=revision or None, timeout=SECONDS).sha or revision
    except Exception as error:
        if not _unreachable(error):
            raise _explained(model, error) from error
    try:
        where = snapshot_download(model, revision=commit or None, allow_patterns=list(FILES))
    except Exception as error:
        raise _explained(model, error) from error
    return Place(Path(where), model, commit or Path(where).name)


def require_type(place: Place, *types: str) -> str:
    """The `model_type` of the place's config, one of `types`.

    Asked before anything is built: transformers fills what another model's config lacks from its defaults,
    and a Florence-2 of those takes 2 GB before it turns out to be none.

    Raises:
        BadInput: a model of another type, or a config that cannot be read.
    """
    config = read_json(place.file("config.json"))
    found = str(config.get("model_type", "")) if isinstance(config, dict) else ""
    if found not in types:
        wrong = f"is {f'a {found}' if found else 'of an unknown type'}"
        raise BadInput(place.name, wrong, f"use a model of {' or '.join(types)}")
    return found


def load_model(kind: Any, place: Place, device: torch.device) -> Any:
    """A transformers class from the place: safetensors only, no code of the model's own, ready to use.

    Raises:
        BadInput: it is no model of that class.
    """
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    place.file("config.json")
    try:
        model, info = kind.from_pretrained(
            place.folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise BadInput(
            place.name, f"cannot be loaded ({_said(error)})", "check that it is complete"
        ) from error
    if missing := sorted(info["missing_keys"]):
        wrong = f"lacks {len(missing)} of its weights, {missing[0]} for one"
        raise BadInput(place.name, wrong, "it is no model of this kind, or not complete")
    return model.to(device).eval()


def load_part(kind: Any, place: Place) -> Any:
    """A processor or tokenizer from the place.

    Raises:
        BadInput: it is not there.
    """
    try:
        return kind.from_pretrained(place.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"has no usable {kind.__name__} ({_said(error)})"
        raise BadInput(place.name, wrong, "get the whole folder of the model") from error


def moved(inputs: Any, model: Any) -> dict[str, Any]:
    """Inputs on the model's device; pictures in its precision."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }


def _unreachable(error: BaseException) -> bool:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return any(part in type(one).__name__ for one in chain for part in UNREACHABLE)


def _explained(model: str, error: BaseException) -> BadInput:
    if _unreachable(error):
        do = "check the connection, or download the model and give its folder"
        return BadInput(model, "cannot be reached on the hub", do)
    if type(error).__name__ in {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}:
        token = "" if os.environ.get("HF_TOKEN") else "; a private one needs HF_TOKEN in the environment"
        return BadInput(model, "is not on the hub, or not for you", f"check name and revision{token}")
    return BadInput(model, f"cannot be fetched ({_said(error)})", "check its name")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
