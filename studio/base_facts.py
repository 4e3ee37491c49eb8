"""What a base model is: found out from folder names, configs and headers, never by loading weights.

A diffusers folder says so in model_index.json and its denoiser's config; a single file by names and
shapes of its tensors. What could run code, or cannot be loaded later, is refused here with the reason.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from registry.errors import BadInput, NotFound
from registry.formats.checkpoints import has_weights, parts_in
from registry.formats.header import Header, read_header
from studio.base_kinds import CONFIGS, KINDS, SUPPORTED, BaseFacts, Source, config_of
from trainers.families import FAMILIES, FamilyInfo

__all__ = [
    "CONFIGS", "BaseFacts", "check_tokenizers", "config_of", "file_facts", "folder_facts", "refuse_code",
    "shipped_configs", "tokenizers_of",
]  # fmt: skip

PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
# Part of a tensor name -> what the file is instead; the first that occurs decides.
_OTHER_FILES = (
    ("lora_", "is an adapter, not a base", f"give a checkpoint of {SUPPORTED}"),
    (".lora_A.", "is an adapter, not a base", f"give a checkpoint of {SUPPORTED}"),
    ("control_model.", "is a ControlNet, not a base", f"give a checkpoint of {SUPPORTED}"),
    (".absmax", "has weights of 4 bits, which cannot be read", "give it in bf16, fp16 or fp32"),
    ("scale_weight", "has weights of 8 bits with scales of their own", "give it in bf16, fp16 or fp32"),
    ("transformer_blocks.0.attn.add_q_proj", "is one component of a diffusers folder", "give the folder"),
)


def folder_facts(folder: Path, family: str = "", *, files: Sequence[str] | None = None) -> BaseFacts:
    """Facts of a diffusers folder.

    Args:
        folder: The folder; configs and tokenizers are read from it.
        family: Overrides what is found where that leaves room.
        files: Relative names of all files, when the weights are not in `folder` yet (a hub id).

    Raises:
        BadInput: no diffusers folder, another pipeline, code or pickles inside, weights or tokenizer missing.
    """
    index = _index(folder)
    names = files or [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
    refuse_code(folder, names)
    pipeline = str(index.get("_class_name", ""))
    kind = next((kind for kind in KINDS if kind.draws(pipeline)), None)
    if kind is None:
        wrong = f"holds a {pipeline or 'model without a class'}, which is not supported"
        raise BadInput(str(folder), wrong, f"give {SUPPORTED}")
    info = FAMILIES[kind.families[0]]
    lacks = kind.lacks(folder)
    parts = [
        part
        for part in (info.denoiser, "vae", *info.text_encoders)
        if part not in lacks and _belongs(index, info, part)
    ]
    notes = [note for part in parts if (note := _check_weights(folder, part, names))]
    if files is None:
        for name in names:
            if PurePosixPath(name).parent.name in parts and name.endswith(".safetensors"):
                read_header(folder / name)  # cut off or empty: known now, not when a run starts
    check_tokenizers(folder, info, lacks)
    source = Source(folder, "folder", family, tuple(notes))
    kind.check_family(source)
    return kind.of_folder(folder, source)


def file_facts(path: Path, family: str = "", config: str = "") -> BaseFacts:
    """Facts of a single checkpoint; reads its header only.

    Args:
        path: The checkpoint.
        family: Overrides what is found where that leaves room.
        config: Folder with configs and tokenizers, and the weights that the checkpoint lacks; "" = none.

    Raises:
        BadInput: a pickle, another model, an adapter, a part of a model that the folder does not complete.
    """
    if path.suffix.lower() in PICKLES:
        raise BadInput(str(path), "is a pickle, which can run code; not loaded", "convert it to safetensors")
    header = read_header(path)
    for part, wrong, do in _OTHER_FILES:
        if any(part in name for name in header.tensors):
            raise BadInput(str(path), wrong, do)
    kind = next((kind for kind in KINDS if any(kind.mark in name for name in header.tensors)), KINDS[-1])
    source = Source(path, "file", family)
    kind.check_family(source)
    facts = kind.of_file(header, config, source)
    _check_whole(path, header, facts, config)
    return facts


def check_tokenizers(folder: Path, info: FamilyInfo, lacks: Sequence[str] = ()) -> None:
    """Refuse a folder without fitting tokenizers: one would load with two tokens, silently.

    Args:
        folder: Of a base, or of configs.
        info: Its family.
        lacks: Text encoders that it rightly lacks.

    Raises:
        BadInput: with what is missing.
    """
    for name in tokenizers_of(folder, info, lacks):
        _check_tokenizer(folder, name)


def tokenizers_of(folder: Path, info: FamilyInfo, lacks: Sequence[str] = ()) -> list[str]:
    """Tokenizers that a folder must bring: one for each of its text encoders."""
    pairs = zip(info.tokenizers, info.text_encoders, strict=True)
    return [
        tokenizer
        for tokenizer, encoder in pairs
        if encoder not in lacks
        and (encoder not in info.optional or (folder / encoder / "config.json").is_file())
    ]


def shipped_configs(family: str, variant: str) -> list[Path]:
    """Our config folders for single files, the special one last: its files replace those of the first."""
    special = CONFIGS / family / "variants" / variant
    return [CONFIGS / family, *([special] if special.is_dir() else [])]


def _check_tokenizer(folder: Path, name: str) -> None:
    tokenizer, encoder = folder / name, name.replace("tokenizer", "text_encoder")
    fast, old, pieces = (tokenizer / file for file in ("tokenizer.json", "vocab.json", "spiece.model"))
    do = f"copy the folder {name}/ of the original model there"
    if pieces.is_file() and not fast.is_file():
        return  # T5 as it was published first: a binary that only its library reads
    if not fast.is_file() and not (old.is_file() and (tokenizer / "merges.txt").is_file()):
        raise BadInput(str(tokenizer), "has no tokenizer.json, nor vocab.json and merges.txt", do)
    words: Any = config_of(fast).get("model", {}).get("vocab", {}) if fast.is_file() else config_of(old)
    width = config_of(folder / encoder / "config.json").get("vocab_size", 0)
    if len(words) < 3 or (width and len(words) > width):
        wrong = f"has {len(words)} tokens, the text encoder knows {width}"
        raise BadInput(str(tokenizer), wrong, do)


def _index(folder: Path) -> dict[str, Any]:
    if (folder / "model_index.json").is_file():
        return config_of(folder / "model_index.json")
    if not folder.exists():
        raise NotFound(str(folder), "is not there", "check the path")
    if (folder / "adapter_config.json").is_file() or (folder / "pytorch_lora_weights.safetensors").is_file():
        raise BadInput(str(folder), "holds an adapter, not a base", f"give a folder of {SUPPORTED}")
    files = sorted(folder.glob("*.safetensors"))
    do = f"give the file itself: {files[0]}" if files else "give a folder in diffusers layout"
    raise BadInput(str(folder), "has no model_index.json", do)


def refuse_code(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder that brings code.

    Raises:
        BadInput: the first Python file.
    """
    if code := next((name for name in names if name.endswith(".py")), ""):
        wrong = f"holds code ({code}), which a base may not bring"
        raise BadInput(str(folder), wrong, "remove the file if you do not need it")


def _belongs(index: dict[str, Any], info: FamilyInfo, part: str) -> bool:
    """Whether a base must have a component: not when it may lack it and says that it does."""
    said: Any = index.get(part)
    return part not in info.optional or (isinstance(said, list) and bool(said) and said[0] is not None)  # pyright: ignore[reportUnknownArgumentType]


def _check_weights(folder: Path, part: str, names: Sequence[str]) -> str:
    """A note about a component's weights, or a refusal."""
    suffixes = {PurePosixPath(name).suffix: name for name in names if PurePosixPath(name).parent.name == part}
    pickle = next((suffixes[suffix] for suffix in suffixes if suffix in PICKLES), "")
    if ".safetensors" in suffixes:
        return f"{pickle} is a pickle and will not be read" if pickle else ""
    if pickle:
        wrong = f"has the weights of its {part} as a pickle only, which can run code; not loaded"
        raise BadInput(str(folder), wrong, "convert it to safetensors, or get that version of the model")
    raise BadInput(str(folder / part), "has no weights (*.safetensors)", "get the complete folder")


def _check_whole(path: Path, header: Header, facts: BaseFacts, config: str) -> None:
    """Every component is in the file, or its weights are in the folder of configs."""
    info = FAMILIES[facts.family]
    there = parts_in(facts.family, header.tensors)
    wanted = [part for part in (info.denoiser, "vae", *info.text_encoders) if part not in info.optional]
    missing = [
        part for part in wanted if part not in there and not (config and has_weights(Path(config), part))
    ]
    if missing:
        wrong = f"lacks {', '.join(missing)} of {info.label}"
        do = f"give a whole checkpoint, or --config DIR with these folders of {info.default_base}"
        raise BadInput(str(path), wrong, do)
