"""Bases: what adapters are trained on. Weights stay where they are; the workspace keeps place and hash."""

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound, StudioError
from registry.files import atomic_folder, check_name, expand_home, write_json
from registry.hashing import hash_folder, hash_json
from registry.records import Base, Run, RunState
from studio.base_facts import CONFIGS, BaseFacts, check_tokenizer, config_of, file_facts, folder_facts
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace

__all__ = [
    "BaseFacts", "add_base", "base_path", "check_available", "detect_base", "list_bases", "remove_base",
]  # fmt: skip

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_FILES = ("model_index.json", "*/*.json", "*/*.txt")  # enough to know what it is; weights come when used
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
)  # fmt: skip
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}


def detect_base(location: str, config: str = "", *, family: str = "") -> BaseFacts:
    """What is at `location`, without loading weights.

    Args:
        location: A diffusers folder or a .safetensors checkpoint.
        config: For a checkpoint: folder with its configs, or at least its tokenizer.
        family: Overrides what is found where that leaves room (toy models).

    Raises:
        NotFound: nothing is there.
        BadInput: it cannot be used as a base; says why.
    """
    path = _existing(location)
    return folder_facts(path, family) if path.is_dir() else file_facts(path, family, config)


def add_base(
    ws: "Workspace", name: str, location: str, *, family: str = "", config: str = "", revision: str = ""
) -> Base:
    """Remember a base; its weights are hashed once and never copied.

    Args:
        ws: The workspace.
        name: What people call it.
        location: A diffusers folder, a .safetensors checkpoint, or a hub id such as owner/model.
        family: Overrides what is found where that leaves room.
        config: For a checkpoint: folder with configs and tokenizer, or with the tokenizer alone.
        revision: Commit, tag or branch of a hub id; pinned to its commit.

    Raises:
        BadInput: the name is taken, or `location` cannot be used as a base.
    """
    check_name(name)
    if ws.catalog.find(Base, name) is not None:
        raise BadInput(f"base {name!r}", "exists already", "choose another name")
    if not location.strip():
        raise BadInput("location", "is empty", "give a folder, a .safetensors file or a hub id")
    place = expand_home(location)
    if _HUB_ID.fullmatch(location) and not place.exists():
        return ws.catalog.add(_hub_base(name, location, family, revision))
    facts = detect_base(location, config, family=family)
    base = Base(
        name=name,
        family=facts.family,
        variant=facts.variant,
        location=ws.relative(place),
        kind=facts.kind,
    )
    if facts.kind == "file":
        folder = _config_folder(ws, place, facts, config)
        base = replace(base, config=ws.relative(folder), weight_hash=ws.memo.sha256(place))
    else:
        base = replace(base, weight_hash=hash_folder(place, ws.memo))
    return ws.catalog.add(base)


def list_bases(ws: "Workspace") -> list[Base]:
    """All bases, the shipped one first, then by age."""
    return sorted(ws.catalog.list(Base, order="created_at"), key=lambda base: not base.builtin)


def base_path(ws: "Workspace", base: Base) -> Path:
    """The folder or file of a base; of a hub id its snapshot in the hub's cache.

    Raises:
        NotFound: a hub id whose files are not on this machine yet.
    """
    if base.kind != "hub":
        return ws.resolve(base.location)
    return _snapshot(base.location, base.revision, local=True)


def check_available(ws: "Workspace", base: Base) -> Path:
    """Prove that a base can be loaded, before anything is spent on it; returns its path.

    Raises:
        NotFound: folder, file or configs are gone.
        BadInput: it is no longer what was added.
    """
    if base.kind == "hub":
        return _snapshot(base.location, base.revision, local=False)
    path = ws.resolve(base.location)
    if not path.exists():
        raise NotFound(f"base {base.name}", f"is no longer at {path}", "put it back, or add it again")
    config = str(ws.resolve(base.config)) if base.config else ""
    if config and not Path(config).is_dir():
        raise NotFound(f"base {base.name}", f"has lost its configs at {config}", "add it again with --config")
    detect_base(str(path), config, family=base.family)
    return path


def remove_base(ws: "Workspace", name: str) -> Base:
    """Forget a base, by name or id; its files stay.

    Raises:
        BadInput: it is shipped with the program, or runs refer to it.
    """
    base = ws.catalog.get(Base, name)
    if base.builtin:
        raise BadInput(f"base {base.name}", "is part of the program", "it takes 5 MB; leave it")
    busy = tuple(state for state in RunState if state.active or state is RunState.QUEUED)
    if runs := ws.catalog.list(Run, base_id=base.id, state=busy, limit=1):
        wrong = f"is being used by run {runs[0].name} ({runs[0].id})"
        raise BadInput(f"base {base.name}", wrong, "stop the run first")
    ws.catalog.delete(Base, base.id)
    return base


def _existing(location: str) -> Path:
    path = expand_home(location)
    if os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name too long for the system
        return path
    raise NotFound(location[:200], "is not there", "check the path, or give a hub id as owner/model")


def _config_folder(ws: "Workspace", file: Path, facts: BaseFacts, config: str) -> Path:
    """The configs of a single file: the person's complete folder, or ours with the person's tokenizer.

    Raises:
        BadInput: no tokenizer; it cannot be shipped, because it belongs to the model.
    """
    label, hub = FAMILIES[facts.family].label, FAMILIES[facts.family].default_base
    if not config:
        wrong = "is a single file, which brings no tokenizer"
        raise BadInput(str(file), wrong, f"add --config DIR with the folder tokenizer/ of {label} ({hub})")
    given = expand_home(config)
    if not given.is_dir():
        raise NotFound(config, "is not a folder", "give a folder with tokenizer/")
    if (given / "unet" / "config.json").is_file():
        check_tokenizer(given)
        return given
    source = given / "tokenizer" if (given / "tokenizer").is_dir() else given
    present = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not present:
        raise BadInput(str(given), "has no tokenizer", f"give the folder tokenizer/ of {label} ({hub})")
    digest = hashlib.sha256(facts.variant.encode())
    for path in present:
        digest.update(path.read_bytes())
    folder = ws.home / "bases" / f"{facts.family}-{digest.hexdigest()[:12]}"
    with atomic_folder(folder) as made:
        shutil.copytree(CONFIGS / facts.family, made, dirs_exist_ok=True)
        (made / "tokenizer").mkdir()
        for path in present:
            shutil.copyfile(path, made / "tokenizer" / path.name)
        _set_variant(made, facts.variant)
        check_tokenizer(made)
    return folder


def _set_variant(folder: Path, variant: str) -> None:
    """Say in the configs what the weights predict and how many channels they read."""
    prediction, _, inpaint = variant.partition("-")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    write_json(scheduler, config_of(scheduler) | {"prediction_type": _PREDICTION_TYPES[prediction]})
    if inpaint:
        unet = folder / "unet" / "config.json"
        write_json(unet, config_of(unet) | {"in_channels": 9})


def _hub_base(name: str, location: str, family: str, revision: str) -> Base:
    """A base on the hub, pinned to a commit; its weights are downloaded when they are first used."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(location, revision=revision or None)
    except Exception as error:  # the library, its HTTP client and the socket each have their own
        raise _unreachable(location, error) from error
    names = [sibling.rfilename for sibling in info.siblings or []]
    if "model_index.json" not in names:
        do = "download the checkpoint and give its path"
        raise BadInput(location, "is no diffusers model (no model_index.json)", do)
    folder = _snapshot(location, str(info.sha), local=False)
    facts = folder_facts(folder, family, files=names)
    return Base(
        name=name,
        family=facts.family,
        variant=facts.variant,
        location=location,
        kind="hub",
        revision=str(info.sha),
        weight_hash=hash_json({"hub": location, "revision": info.sha}),
    )


def _snapshot(location: str, revision: str, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision or None, "allow_patterns": list(_HUB_FILES)}
    try:
        return Path(snapshot_download(location, local_files_only=True, **options))
    except Exception as error:
        if local:
            wrong = "is not on this machine yet"
            raise NotFound(location, wrong, "it is downloaded when it is first used") from error
    try:
        return Path(snapshot_download(location, **options))
    except Exception as error:
        raise _unreachable(location, error) from error


def _unreachable(location: str, error: Exception) -> StudioError:
    kind = type(error).__name__
    if kind in {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}:
        wrong = "is neither a folder or file here nor a model you may read on the hub"
        return NotFound(location, wrong, "check name and revision; private and gated models need HF_TOKEN")
    wrong = "is neither a folder or file here, nor can the hub be reached"
    return NotFound(location, wrong, "check the path or the connection")
