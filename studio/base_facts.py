"""What a base model is: found out from folder names, configs and headers, never by loading weights.

A diffusers folder says so in model_index.json and unet/config.json; a single file by the names and shapes of
its tensors. What could run code, or cannot be loaded later, is refused here with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from registry.errors import BadInput, NotFound, StudioError
from registry.files import read_json
from registry.formats.header import Header, read_header
from trainers.families import FAMILIES

CONFIGS = Path(__file__).parent / "configs"  # per family: everything but the tokenizer, for single files
WEIGHT_PARTS = ("unet", "vae", "text_encoder")
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
LATENT_CHANNELS, INPAINT_CHANNELS = 4, 9  # of the UNet's input; 9 = latents, masked latents and mask
SUPPORTED = " and ".join(info.label for info in FAMILIES.values())

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "v": "v", "eps": "eps"}
_USUAL = {"eps": "sd15", "v": "sd21"}  # only for toy models, whose widths name no family
_PIPELINES = re.compile(r"^(?P<stem>StableDiffusion)(Img2Img|Inpaint)?Pipeline$")
_TO_K = re.compile(r"^model\.diffusion_model\.input_blocks\..*attn2\.to_k\.weight$")
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
# Part of a tensor name -> what the file is instead; the first that occurs decides.
_OTHER_FILES = (
    ("lora_", "is an adapter, not a base", f"give a checkpoint of {SUPPORTED}"),
    (".lora_A.", "is an adapter, not a base", f"give a checkpoint of {SUPPORTED}"),
    ("double_blocks.", "is a FLUX checkpoint, which is not supported yet", f"give {SUPPORTED}"),
    ("joint_blocks.", "is a Stable Diffusion 3 checkpoint, which is not supported yet", f"give {SUPPORTED}"),
    ("conditioner.embedders.", "is an SDXL checkpoint, which is not supported yet", f"give {SUPPORTED}"),
    ("control_model.", "is a ControlNet, not a base", f"give a checkpoint of {SUPPORTED}"),
)


@dataclass(frozen=True)
class BaseFacts:
    """What was found. `reason` says what decided the family; `notes` are for the person who adds the base."""

    family: str
    variant: str  # "eps" or "v", with "-inpaint" behind it for a UNet of 9 channels
    kind: str  # "folder" | "file" | "hub"
    reason: str
    notes: tuple[str, ...] = ()


def folder_facts(folder: Path, family: str = "", *, files: Sequence[str] | None = None) -> BaseFacts:
    """Facts of a diffusers folder.

    Args:
        folder: The folder; configs and tokenizer are read from it.
        family: Overrides what is found where that leaves room.
        files: Relative names of all files, when the weights are not in `folder` yet (a hub id).

    Raises:
        BadInput: no diffusers folder, another pipeline, code or pickles inside, weights or tokenizer missing.
    """
    index = _index(folder)
    names = files or [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
    _refuse_code(folder, names)
    pipeline = str(index.get("_class_name", ""))
    if not _PIPELINES.match(pipeline):
        wrong = f"holds a {pipeline or 'model without a class'}, which is not supported yet"
        raise BadInput(str(folder), wrong, f"give {SUPPORTED}")
    notes = [note for part in WEIGHT_PARTS if (note := _check_weights(folder, part, names))]
    if files is None:
        for name in names:
            if PurePosixPath(name).parent.name in WEIGHT_PARTS and name.endswith(".safetensors"):
                read_header(folder / name)  # cut off or empty: known now, not when a run starts
    check_tokenizer(folder)
    unet = config_of(folder / "unet" / "config.json")
    prediction = _prediction(folder)
    width = _width(unet.get("cross_attention_dim"))
    if not width:
        wrong = "does not say cross_attention_dim, the width of the text it reads"
        raise BadInput(str(folder / "unet" / "config.json"), wrong, "download it again")
    return _facts(folder, family, "folder", width, prediction, int(unet.get("in_channels", 4)), notes)


def file_facts(path: Path, family: str = "", config: str = "") -> BaseFacts:
    """Facts of a single checkpoint; reads its header only.

    Raises:
        BadInput: a pickle, another model, an adapter, a part of a model.
    """
    if path.suffix.lower() in PICKLES:
        raise BadInput(str(path), "is a pickle, which can run code; not loaded", "convert it to safetensors")
    header = read_header(path)
    for part, wrong, do in _OTHER_FILES:
        if any(part in name for name in header.tensors):
            raise BadInput(str(path), wrong, do)
    first = header.tensors.get(_FIRST_CONV)
    if first is None or len(first.shape) != 4:
        wrong = "is no Stable Diffusion checkpoint (no model.diffusion_model.input_blocks)"
        raise BadInput(str(path), wrong, "give a whole checkpoint, or a diffusers folder")
    _check_whole(path, header)
    width = next((info.shape[-1] for name, info in header.tensors.items() if _TO_K.match(name)), 0)
    notes: list[str] = []
    prediction = _file_prediction(header.metadata, config)
    known = next((info.name for info in FAMILIES.values() if info.cross_attention_dim == width), "")
    if not known and not family:
        family = _text_encoder_family(header)
    if not prediction:
        chosen = family or known or _USUAL["eps"]
        shipped = CONFIGS / chosen
        prediction = _prediction(shipped) if shipped.is_dir() else "eps"
        notes.append(f"the file does not say what it predicts; taken as {prediction}, usual for its family")
    return _facts(path, family, "file", width, prediction, first.shape[1], notes)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a fitting tokenizer: it would load as one of two tokens, silently.

    Raises:
        BadInput: with what is missing.
    """
    tokenizer = folder / "tokenizer"
    fast, old = tokenizer / "tokenizer.json", tokenizer / "vocab.json"
    do = "copy the folder tokenizer/ of the original model there"
    if not fast.is_file() and not (old.is_file() and (tokenizer / "merges.txt").is_file()):
        raise BadInput(str(tokenizer), "has no tokenizer.json, nor vocab.json and merges.txt", do)
    words: Any = config_of(fast).get("model", {}).get("vocab", {}) if fast.is_file() else config_of(old)
    width = config_of(folder / "text_encoder" / "config.json").get("vocab_size", 0)
    if len(words) < 3 or (width and len(words) > width):
        wrong = f"has {len(words)} tokens, the text encoder knows {width}"
        raise BadInput(str(tokenizer), wrong, do)


def config_of(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadInput: missing, not JSON, not an object.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise BadInput(str(path), "is missing or cannot be read", "get the complete folder") from error
    except StudioError as error:
        raise BadInput(str(path), error.wrong, "download it again") from error
    if not isinstance(value, dict):
        raise BadInput(str(path), "is not a JSON object", "download it again")
    return cast("dict[str, Any]", value)


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


def _refuse_code(folder: Path, names: Sequence[str]) -> None:
    if code := next((name for name in names if name.endswith(".py")), ""):
        wrong = f"holds code ({code}), which a base may not bring"
        raise BadInput(str(folder), wrong, "remove the file if you do not need it")


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


def _check_whole(path: Path, header: Header) -> None:
    for start, what in (("first_stage_model.", "a VAE"), ("cond_stage_model.", "a text encoder")):
        if not any(name.startswith(start) for name in header.tensors):
            raise BadInput(str(path), f"has no {what[2:]} (tensors {start}*)", "give a whole checkpoint")


def _prediction(folder: Path) -> str:
    scheduler = config_of(folder / "scheduler" / "scheduler_config.json")
    said = str(scheduler.get("prediction_type", "epsilon"))
    if said not in _PREDICTIONS:
        wrong = f"predicts {said!r}, which is not supported"
        raise BadInput(str(folder / "scheduler"), wrong, "use a model that predicts epsilon or v")
    return _PREDICTIONS[said]


def _file_prediction(metadata: Mapping[str, str], config: str) -> str:
    """ "eps" or "v" as the configs or the file's own metadata say; "" when neither does."""
    if config and (Path(config) / "scheduler" / "scheduler_config.json").is_file():
        return _prediction(Path(config))
    return _PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""), "")


def _text_encoder_family(header: Header) -> str:
    """SD1.5 brings CLIP as transformers names it, SD2.1 OpenCLIP: for files whose width names no family."""
    transformers = any(name.startswith("cond_stage_model.transformer.") for name in header.tensors)
    return _USUAL["eps" if transformers else "v"]


def _width(value: Any) -> int:
    found = cast("list[Any]", value)[0] if isinstance(value, list) and value else value
    return found if isinstance(found, int) else 0


def _facts(
    place: Path, family: str, kind: str, width: int, prediction: str, channels: int, notes: list[str]
) -> BaseFacts:
    """Put together what the configs or the header say."""
    if family and family not in FAMILIES:
        raise BadInput(f"family {family!r}", "is not known", f"use one of {', '.join(FAMILIES)}")
    if channels not in (LATENT_CHANNELS, INPAINT_CHANNELS):
        wrong = f"has a UNet with {channels} input channels"
        raise BadInput(str(place), wrong, f"use a model with {LATENT_CHANNELS} or {INPAINT_CHANNELS}")
    known = next((info.name for info in FAMILIES.values() if info.cross_attention_dim == width), "")
    if family and known and family != known:
        wrong = f"has text width {width}, which is {FAMILIES[known].label}, not {FAMILIES[family].label}"
        raise BadInput(str(place), wrong, f"leave the family out, or say {known}")
    reason = f"text width {width}"
    if family:
        reason += " (family as given)" if not known else ""
    elif not known:
        family = _USUAL[prediction]
        notes.append(f"text width {width} is of no known family: taken as {FAMILIES[family].label}")
        reason = f"predicts {prediction}"
    variant = f"{prediction}-inpaint" if channels == INPAINT_CHANNELS else prediction
    return BaseFacts(family or known, variant, kind, reason, tuple(notes))
