"""Bases: what adapters are trained on. Weights stay where they are; the workspace keeps place and hash."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound, StudioError
from registry.files import atomic_folder, check_name, expand_home, write_json
from registry.formats.checkpoints import has_weights, parts_of_file
from registry.hashing import hash_folder, hash_json
from registry.records import Base, Run, RunState
from studio.base_facts import (
    BaseFacts,
    check_tokenizers,
    config_of,
    file_facts,
    folder_facts,
    shipped_configs,
)
from studio.base_links import link_adapters
from studio.control_facts import PART_LABELS, control_facts
from studio.media_facts import media_facts
from studio.sampling.control.kinds import ANY, UNION, control_kind
from studio.sampling.media.kinds import MEDIA, MOTION
from trainers.families import FAMILIES, FamilyInfo

if TYPE_CHECKING:
    from studio.workspace import Workspace

__all__ = [
    "BaseFacts", "add_base", "base_path", "check_available", "detect_base", "list_bases", "list_media",
    "list_motions", "list_parts", "remove_base",
]  # fmt: skip

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_FILES = (
    "model_index.json",
    "config.json",
    "*/*.json",
    "*/*.txt",
    "*/*.model",
)  # enough to know what it is; weights come when used
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "spiece.model",
)  # fmt: skip
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}


def detect_base(location: str, config: str = "", *, family: str = "") -> BaseFacts:
    """What is at `location`, without loading weights.

    Args:
        location: A diffusers folder or a .safetensors checkpoint; of a base, ControlNet or T2I-Adapter, or of
            what makes video, sound or 3D.
        config: For a checkpoint: folder with its configs, or at least its tokenizer.
        family: Overrides what is found where that leaves room (toy models).

    Raises:
        NotFound: nothing is there.
        BadInput: it cannot be used as a base; says why.
    """
    path = _existing(location)
    if (part := control_facts(path, family) or media_facts(path, family)) is not None:
        return part
    return folder_facts(path, family) if path.is_dir() else file_facts(path, family, config)


def add_base(
    ws: "Workspace",
    name: str,
    location: str,
    *,
    family: str = "",
    config: str = "",
    revision: str = "",
    made: Mapping[str, Any] | None = None,
    control: str = "",
) -> Base:
    """Remember a base; its weights are hashed once and never copied.

    Args:
        ws: The workspace.
        name: What people call it.
        location: A diffusers folder, a .safetensors checkpoint, or a hub id such as owner/model.
        family: Overrides what is found where that leaves room.
        config: For a checkpoint: folder with configs, tokenizers and the weights it lacks, or with the
            tokenizers alone.
        revision: Commit, tag or branch of a hub id; pinned to its commit.
        made: What it was made of, see `operations.bake`.
        control: Of a ControlNet or T2I-Adapter: the kind of map it reads, where its name does not say.

    Raises:
        BadInput: the name is taken, or `location` cannot be used as a base.
    """
    check_name(name)
    if ws.catalog.find(Base, name) is not None:
        raise BadInput(f"base {name!r}", "exists already", "choose another name")
    if not location.strip():
        raise BadInput("location", "is empty", "give a folder, a .safetensors file or a hub id")
    if control and control not in (UNION, ANY):
        control_kind(control)
    place = expand_home(location)
    if _HUB_ID.fullmatch(location) and not place.exists():
        return _added(ws, _hub_base(name, location, family, revision, control))
    facts = detect_base(location, config, family=family)
    base = Base(
        name=name,
        family=facts.family,
        variant=facts.variant,
        location=ws.relative(place),
        kind=facts.kind,
        made=dict(made or {}),
        part=facts.part,
    )
    if facts.part:
        whole = ws.memo.sha256(place) if facts.kind == "file" else hash_folder(place, ws.memo)
        kind = control if facts.part in PART_LABELS else ""
        base = replace(base, variant=kind or facts.variant, weight_hash=whole)
    elif facts.kind == "file":
        folder = _config_folder(ws, place, facts, config)
        base = replace(
            base, config=ws.relative(folder), weight_hash=_file_hash(ws, place, folder, facts.family)
        )
    else:
        base = replace(base, weight_hash=hash_folder(place, ws.memo))
    return _added(ws, base)


def _added(ws: "Workspace", base: Base) -> Base:
    """The row of a new base; imported adapters that name its hash become its."""
    made = ws.catalog.add(base)
    link_adapters(ws, made)
    return made


def list_bases(ws: "Workspace") -> list[Base]:
    """All bases, the shipped one first, then by age."""
    found = ws.catalog.list(Base, part="", order="created_at")
    return sorted(found, key=lambda base: not base.builtin)


def list_parts(ws: "Workspace", family: str = "") -> list[Base]:
    """ControlNets and T2I-Adapters, by age; `family`: only those for its bases."""
    wanted: dict[str, Any] = {"family": family} if family else {}
    return ws.catalog.list(Base, part=tuple(PART_LABELS), order="created_at", **wanted)


def list_media(ws: "Workspace") -> list[Base]:
    """Bases that make video, sound or 3D, by age."""
    return ws.catalog.list(Base, part=tuple(MEDIA), order="created_at")


def list_motions(ws: "Workspace", family: str = "") -> list[Base]:
    """Motion adapters, by age; `family`: only those for its bases."""
    wanted: dict[str, Any] = {"family": family} if family else {}
    return ws.catalog.list(Base, part=MOTION, order="created_at", **wanted)


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
    """The configs of a single file: the person's complete folder, or ours with the person's tokenizers.

    Raises:
        BadInput: no tokenizer; it cannot be shipped, because it belongs to the model.
    """
    info = FAMILIES[facts.family]
    folders = " and ".join(f"{name}/" for name in info.tokenizers if name not in info.optional)
    if not config:
        wrong = "is a single file, which brings no tokenizer"
        do = f"add --config DIR with {folders} of {info.label} ({info.default_base})"
        raise BadInput(str(file), wrong, do)
    given = expand_home(config)
    if not given.is_dir():
        raise NotFound(config, "is not a folder", f"give a folder with {folders}")
    if (given / info.denoiser / "config.json").is_file():
        check_tokenizers(given, info)
        return given
    whole = parts_of_file(facts.family, file)
    left_out = {part for part in info.text_encoders if part in info.optional and part not in whole}
    names = [name for name in info.tokenizers if name.replace("tokenizer", "text_encoder") not in left_out]
    present = {name: _tokenizer_files(given, name, info) for name in names}
    digest = hashlib.sha256(f"{facts.variant} {sorted(left_out)}".encode())
    for path in (path for paths in present.values() for path in paths):
        digest.update(path.read_bytes())
    folder = ws.home / "bases" / f"{facts.family}-{digest.hexdigest()[:12]}"
    with atomic_folder(folder) as made:
        for source in shipped_configs(facts.family, facts.variant):
            shutil.copytree(source, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("variants"))
        for part in left_out:
            shutil.rmtree(made / part)
        for name, paths in present.items():
            (made / name).mkdir()
            for path in paths:
                shutil.copyfile(path, made / name / path.name)
        if info.denoiser == "unet":
            _set_variant(made, facts.variant)
        check_tokenizers(made, info)
    return folder


def _tokenizer_files(given: Path, name: str, info: FamilyInfo) -> list[Path]:
    """Files of a tokenizer in the person's folder, which may be the tokenizer itself where there is one only.

    Raises:
        BadInput: there are none.
    """
    source = given if len(info.tokenizers) == 1 and not (given / name).is_dir() else given / name
    present = [source / file for file in _TOKENIZER_FILES if (source / file).is_file()]
    if not present:
        do = f"give the folder {name}/ of {info.label} ({info.default_base})"
        raise BadInput(str(source), "has no tokenizer", do)
    return present


def _set_variant(folder: Path, variant: str) -> None:
    """Say in the configs of a UNet what the weights predict and how many channels they read."""
    prediction, _, inpaint = variant.partition("-")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    write_json(scheduler, config_of(scheduler) | {"prediction_type": _PREDICTION_TYPES[prediction]})
    if inpaint:
        unet = folder / "unet" / "config.json"
        write_json(unet, config_of(unet) | {"in_channels": 9})


def _file_hash(ws: "Workspace", file: Path, folder: Path, family: str) -> str:
    """Hash of a checkpoint, with that of the folder that brings the weights it lacks."""
    info, there = FAMILIES[family], parts_of_file(family, file)
    own = ws.memo.sha256(file)
    borrowed = {
        part: hash_folder(folder / part, ws.memo)
        for part in (info.denoiser, "vae", *info.text_encoders)
        if part not in there and has_weights(folder, part)
    }
    return hash_json({"file": own, **borrowed}) if borrowed else own


def _hub_base(name: str, location: str, family: str, revision: str, control: str) -> Base:
    """A base on the hub, pinned to a commit; its weights are downloaded when they are first used."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(location, revision=revision or None)
    except Exception as error:  # the library, its HTTP client and the socket each have their own
        raise _unreachable(location, error) from error
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not {"model_index.json", "config.json"} & set(names):
        do = "download the checkpoint and give its path"
        raise BadInput(location, "is no diffusers model (no model_index.json)", do)
    folder = _snapshot(location, str(info.sha), local=False)
    facts = (
        control_facts(folder, family, name=location, files=names)
        or media_facts(folder, family, files=names)
        or folder_facts(folder, family, files=names)
    )
    return Base(
        name=name,
        family=facts.family,
        variant=(control if facts.part in PART_LABELS else "") or facts.variant,
        part=facts.part,
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
