"""How bases of each architecture tell what they are: by configs in a folder, by names and shapes in a file.

A new architecture is a class here with its row in `KINDS`. Nothing is loaded.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput, StudioError
from registry.files import read_json
from registry.formats.header import Header
from trainers.families import FAMILIES

CONFIGS = Path(__file__).parent / "configs"  # per family: everything but the tokenizers, for single files
LATENT_CHANNELS, INPAINT_CHANNELS = 4, 9  # of a UNet's input; 9 = latents, masked latents and mask
FILL_CHANNELS = 384  # of FLUX.1 Fill: 4 x (16 latents, 16 of the masked picture, 8 x 8 of the mask)
SUPPORTED = ", ".join(info.label for info in FAMILIES.values())

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "v": "v", "eps": "eps"}
_USUAL = {"eps": "sd15", "v": "sd21"}  # only for toy models, whose widths name no family
_TO_K = re.compile(r"^model\.diffusion_model\.input_blocks\..*attn2\.to_k\.weight$")
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
_DENOISER = "model.diffusion_model."


@dataclass(frozen=True)
class BaseFacts:
    """What was found. `reason` says what decided the family; `notes` are for the person who adds the base."""

    family: str
    variant: str  # "eps" or "v", with "-inpaint" or "-refiner" behind it; "medium", "dev", "fill", ...
    kind: str  # "folder" | "file" | "hub"
    reason: str
    notes: tuple[str, ...] = ()
    part: str = ""  # "" = a whole base; else what it is instead, see studio.control_facts


@dataclass(frozen=True)
class Source:
    """Where facts come from.

    Args:
        place: The folder or file, for errors.
        kind: "folder" or "file".
        family: As given by the person; "" = not.
        notes: What was noticed before.
    """

    place: Path
    kind: str
    family: str = ""
    notes: tuple[str, ...] = ()


class Kind(ABC):
    """One architecture.

    Args:
        stem: Of the class in model_index.json: "Flux" for FluxPipeline, and Img2Img and such in between.
        families: Names in FAMILIES, the usual one first.
        mark: Part of a tensor's name that tells a single file of this kind; the first kind that fits counts.
    """

    def __init__(self, stem: str, families: tuple[str, ...], mark: str) -> None:
        self.families, self.mark = families, mark
        self._pipelines = re.compile(rf"{stem}(Img2Img|Inpaint|Fill)?Pipeline")

    def draws(self, pipeline: str) -> bool:
        """Whether a pipeline class has the components of this kind."""
        return self._pipelines.fullmatch(pipeline) is not None

    def lacks(self, folder: Path) -> tuple[str, ...]:
        """Components that this folder rightly lacks, beside those that any base of the kind may lack."""
        del folder
        return ()

    def check_family(self, source: Source) -> None:
        """Refuse a family that the person gave and that cannot be.

        Raises:
            BadInput: not known, or of another architecture.
        """
        given = source.family
        if given and given not in FAMILIES:
            raise BadInput(f"family {given!r}", "is not known", f"use one of {', '.join(FAMILIES)}")
        if given and given not in self.families:
            is_, not_ = FAMILIES[self.families[0]].label, FAMILIES[given].label
            raise BadInput(str(source.place), f"is {is_}, not {not_}", "leave the family out")

    @abstractmethod
    def of_folder(self, folder: Path, source: Source) -> BaseFacts:
        """Facts from the configs of a diffusers folder."""

    @abstractmethod
    def of_file(self, header: Header, config: str, source: Source) -> BaseFacts:
        """Facts from the header of a checkpoint; `config` is the folder of configs beside it, if any."""


class StableDiffusion(Kind):
    """SD1.5 and SD2.1: the width of the text tells them apart."""

    def of_folder(self, folder: Path, source: Source) -> BaseFacts:
        """By cross_attention_dim; toy widths go by the prediction type."""
        unet = config_of(folder / "unet" / "config.json")
        width = _width(unet.get("cross_attention_dim"))
        if not width:
            wrong = "does not say cross_attention_dim, the width of the text it reads"
            raise BadInput(str(folder / "unet" / "config.json"), wrong, "download it again")
        return self._facts(source, width, prediction_of(folder), int(unet.get("in_channels", 4)))

    def of_file(self, header: Header, config: str, source: Source) -> BaseFacts:
        """By the shape of attn2.to_k; toy widths go by the text encoder's names."""
        channels = _input_channels(header, source)
        width = next((info.shape[-1] for name, info in header.tensors.items() if _TO_K.match(name)), 0)
        family = source.family
        known = _family_of_width(self.families, width)
        if not known and not family:
            family = _text_encoder_family(header)
        prediction, notes = _file_prediction(header, config, family or known)
        source = Source(source.place, source.kind, family, source.notes + notes)
        return self._facts(source, width, prediction, channels)

    def _facts(self, source: Source, width: int, prediction: str, channels: int) -> BaseFacts:
        """Put together what the configs or the header say."""
        variant = _unet_variant(source, prediction, channels)
        family, notes = source.family, source.notes
        known = _family_of_width(self.families, width)
        if family and known and family != known:
            wrong = f"has text width {width}, which is {FAMILIES[known].label}, not {FAMILIES[family].label}"
            raise BadInput(str(source.place), wrong, f"leave the family out, or say {known}")
        reason = f"text width {width}"
        if family:
            reason += " (family as given)" if not known else ""
        elif not known:
            family = _USUAL[prediction]
            notes += (f"text width {width} is of no known family: taken as {FAMILIES[family].label}",)
            reason = f"predicts {prediction}"
        return BaseFacts(family or known, variant, source.kind, reason, notes)


class StableDiffusionXL(Kind):
    """SDXL: a UNet that is told the picture's size. Its refiner reads the second text encoder alone."""

    def lacks(self, folder: Path) -> tuple[str, ...]:
        """The first text encoder, if the UNet is as wide as the second alone."""
        unet, second = (folder / part / "config.json" for part in ("unet", "text_encoder_2"))
        if not (unet.is_file() and second.is_file()):
            return ()
        width = config_of(second).get("hidden_size")
        alone = width is not None and _width(config_of(unet).get("cross_attention_dim")) == width
        return ("text_encoder",) if alone else ()

    def of_folder(self, folder: Path, source: Source) -> BaseFacts:
        """By the pipeline's name; prediction and channels make the variant."""
        unet = config_of(folder / "unet" / "config.json")
        variant = _unet_variant(source, prediction_of(folder), int(unet.get("in_channels", 4)))
        width = _width(unet.get("cross_attention_dim"))
        reason = f"text width {width}"
        if self.lacks(folder):
            variant, reason = f"{variant}-refiner", "reads the second text encoder alone"
        return BaseFacts("sdxl", variant, source.kind, reason, source.notes)

    def of_file(self, header: Header, config: str, source: Source) -> BaseFacts:
        """By its two text encoders; `v_pred` and `ztsnr` are empty tensors that some fine-tunes bring."""
        channels = _input_channels(header, source)
        if not any(name.startswith("conditioner.embedders.1.") for name in header.tensors):
            raise BadInput(
                str(source.place), "is the SDXL refiner as a single file", "give its diffusers folder"
            )
        prediction, notes = _file_prediction(header, config, "sdxl")
        if "v_pred" in header.tensors and not config:
            prediction, notes = "v", ()
        if "ztsnr" in header.tensors:
            notes += ("it was trained to zero signal: say rescale_betas_zero_snr in the scheduler's config",)
        variant = _unet_variant(source, prediction, channels)
        return BaseFacts("sdxl", variant, source.kind, "has two text encoders", source.notes + notes)


class StableDiffusion3(Kind):
    """SD3.5: Medium has a second attention in its first blocks, Large has none."""

    def of_folder(self, folder: Path, source: Source) -> BaseFacts:
        """By the transformer's config."""
        config = config_of(folder / "transformer" / "config.json")
        dual, layers = bool(config.get("dual_attention_layers")), int(config.get("num_layers", 0))
        return self._facts(source, dual, layers, normed=bool(config.get("qk_norm")))

    def of_file(self, header: Header, config: str, source: Source) -> BaseFacts:
        """By the names within its blocks."""
        del config
        names = header.tensors
        blocks = {int(m[1]) for name in names if (m := re.search(r"joint_blocks\.(\d+)\.", name))}
        dual = any(".x_block.attn2." in name for name in names)
        return self._facts(source, dual, len(blocks), normed=any(".ln_q." in name for name in names))

    def _facts(self, source: Source, dual: bool, layers: int, *, normed: bool) -> BaseFacts:
        notes = source.notes
        if not normed:
            notes += ("its attention has no norms: this is Stable Diffusion 3, the one before 3.5",)
        variant = "medium" if dual or not normed else "large"
        reason = f"{layers} blocks, {'some' if dual else 'none'} with a second attention"
        return BaseFacts("sd35", variant, source.kind, reason, notes)


class Flux(Kind):
    """FLUX.1: dev takes guidance as an input, schnell has none; Fill reads a mask beside the latents."""

    def of_folder(self, folder: Path, source: Source) -> BaseFacts:
        """By the transformer's config."""
        config = config_of(folder / "transformer" / "config.json")
        channels = int(config.get("in_channels", 64))
        vae = config_of(folder / "vae" / "config.json")
        latent, levels = int(vae.get("latent_channels", 16)), len(vae.get("block_out_channels", "four"))
        fill = int(config.get("out_channels") or channels) < channels
        wanted = 4 * (2 * latent + 4 ** (levels - 1)) if fill else 4 * latent
        return self._facts(source, channels, wanted, config.get("guidance_embeds"), fill=fill)

    def of_file(self, header: Header, config: str, source: Source) -> BaseFacts:
        """By guidance_in and by the width of its input."""
        del config
        names = header.tensors
        first = next((info for name, info in names.items() if name.endswith("img_in.weight")), None)
        channels = first.shape[-1] if first is not None and len(first.shape) == 2 else 0
        guidance = any("guidance_in." in name for name in names)
        last = next(
            (info for name, info in names.items() if name.endswith("final_layer.linear.weight")), None
        )
        fill = last is not None and last.shape[0] == 64 and channels == FILL_CHANNELS
        wanted = channels if fill or channels < 64 else 64
        return self._facts(source, channels, wanted, guidance, fill=fill)

    def _facts(self, source: Source, channels: int, wanted: int, guidance: Any, *, fill: bool) -> BaseFacts:
        if not channels or channels != wanted:
            wrong = f"reads {channels} values a patch, a base of FLUX.1 {wanted or 64}"
            raise BadInput(str(source.place), wrong, "give FLUX.1-dev or -schnell, or a fine-tune of them")
        reason = f"{'takes' if guidance else 'takes no'} guidance as an input"
        if fill:
            return BaseFacts("flux1", "fill", source.kind, f"{reason}, and a mask", source.notes)
        return BaseFacts("flux1", "dev" if guidance else "schnell", source.kind, reason, source.notes)


KINDS: tuple[Kind, ...] = (
    Flux("Flux", ("flux1",), "double_blocks."),
    StableDiffusion3("StableDiffusion3", ("sd35",), "joint_blocks."),
    StableDiffusionXL("StableDiffusionXL", ("sdxl",), "conditioner.embedders."),
    StableDiffusion("StableDiffusion", ("sd15", "sd21"), _DENOISER),
)


def kind_of(family: str) -> Kind:
    """The architecture of a family."""
    return next(kind for kind in KINDS if family in kind.families)


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


def prediction_of(folder: Path) -> str:
    """ "eps" or "v", as the scheduler's config says.

    Raises:
        BadInput: something else.
    """
    scheduler = config_of(folder / "scheduler" / "scheduler_config.json")
    said = str(scheduler.get("prediction_type", "epsilon"))
    if said not in _PREDICTIONS:
        wrong = f"predicts {said!r}, which is not supported"
        raise BadInput(str(folder / "scheduler"), wrong, "use a model that predicts epsilon or v")
    return _PREDICTIONS[said]


def _file_prediction(header: Header, config: str, family: str) -> tuple[str, tuple[str, ...]]:
    """ "eps" or "v" as the configs, the file's metadata or the family's custom say; a note for the last."""
    if config and (Path(config) / "scheduler" / "scheduler_config.json").is_file():
        return prediction_of(Path(config)), ()
    metadata: Mapping[str, str] = header.metadata
    if said := _PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""), ""):
        return said, ()
    usual = prediction_of(CONFIGS / family)
    return usual, (f"the file does not say what it predicts; taken as {usual}, usual for its family",)


def _unet_variant(source: Source, prediction: str, channels: int) -> str:
    if channels not in (LATENT_CHANNELS, INPAINT_CHANNELS):
        wrong = f"has a UNet with {channels} input channels"
        do = f"use a model with {LATENT_CHANNELS} or {INPAINT_CHANNELS}"
        raise BadInput(str(source.place), wrong, do)
    return f"{prediction}-inpaint" if channels == INPAINT_CHANNELS else prediction


def _input_channels(header: Header, source: Source) -> int:
    first = header.tensors.get(_FIRST_CONV)
    if first is None or len(first.shape) != 4:
        wrong = "is no Stable Diffusion checkpoint (no model.diffusion_model.input_blocks)"
        raise BadInput(str(source.place), wrong, "give a whole checkpoint, or a diffusers folder")
    return first.shape[1]


def _text_encoder_family(header: Header) -> str:
    """SD1.5 brings CLIP as transformers names it, SD2.1 OpenCLIP: for files whose width names no family."""
    transformers = any(name.startswith("cond_stage_model.transformer.") for name in header.tensors)
    return _USUAL["eps" if transformers else "v"]


def _family_of_width(families: tuple[str, ...], width: int) -> str:
    return next((name for name in families if FAMILIES[name].cross_attention_dim == width), "")


def _width(value: Any) -> int:
    found = cast("list[Any]", value)[0] if isinstance(value, list) and value else value
    return found if isinstance(found, int) else 0
