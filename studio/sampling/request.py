"""What a person asks the sampler for; one model feeds the command line, the page and the metadata."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from studio.sampling.request_control import ControlChoice
from studio.sampling.request_modes import HiresChoice, UpscaleChoice
from studio.sampling.strengths import MOST_BLOCKS, MOST_POINTS, is_ordered

Text = Annotated[str, Field(max_length=10_000)]
SIDE = 8  # pixels; sides of a picture are multiples of it
Pixels = Annotated[int, Field(ge=0, le=2048)]
Factor = Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)]
Number = Annotated[int | float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class AdapterChoice(BaseModel):
    """An adapter and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Catalog id; or RUN@STEP, a checkpoint of a run."""
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0
    """Strength on the denoiser; 0 = off, 1 = as trained."""
    text_weight: Annotated[float | None, Field(ge=-4, le=4)] = None
    """Strength on the text encoder; none = same as weight."""
    blocks: Annotated[dict[str, Factor], Field(max_length=MOST_BLOCKS)] = {}
    """Factors of blocks by name (IN04, MID, OUT00-05, DOUBLE, TE1, *attn2*); of several the last counts."""
    schedule: Annotated[tuple[tuple[Fraction, Factor], ...], Field(max_length=MOST_POINTS)] = ()
    """(fraction of the steps, factor) in order, straight lines between; on the denoiser. Empty = always 1."""

    @field_validator("schedule")
    @classmethod
    def _in_order(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if not is_ordered(value):
            raise ValueError("fractions must not go back")
        return value


class EmbeddingChoice(BaseModel):
    """An embedding file that a prompt names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The word: the file's name."""
    sha256: str
    """Of the file."""


class SampleRequest(BaseModel):
    """One request: `count` pictures, picture i with seed `seed + i`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: str
    """Catalog id of the base."""
    adapters: tuple[AdapterChoice, ...] = ()
    """Adapters that act together."""
    partial: bool = False
    """Draw also with adapters of which some modules have no place in the base."""
    prompt: Text = ""
    """What to draw, in the syntax of docs/sampling.md: (more:1.2) [less] [from:to:0.5] [a|b] AND BREAK."""
    negative: Text = ""
    """What to avoid, in the same syntax."""
    clip_skip: Annotated[int, Field(ge=0, le=24)] = 0
    """Last layers of CLIP that are not used, as A1111 counts: 0 and 1 = all are used, 2 = all but one."""
    steps: Annotated[int, Field(ge=1, le=500)] = 25
    """How many steps (inference steps)."""
    cfg: Annotated[float, Field(ge=0, le=50)] = 7.0
    """How closely to follow the prompt (guidance scale); 1 = no guidance."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the first picture; picture i uses seed + i (wraps at 2^32)."""
    width: Annotated[int, Field(ge=16, le=4096, multiple_of=SIDE)] = 512
    """Width in pixels."""
    height: Annotated[int, Field(ge=16, le=4096, multiple_of=SIDE)] = 512
    """Height in pixels."""
    scheduler: str = "default"
    """Sampler with its schedule, as "DPM++ 2M Karras"; "default" = the base's own."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """How many pictures."""
    image: str = ""
    """Picture to start from: a file. It is scaled to cover the size, then cut in the middle."""
    strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    """How much of the picture may change: 0 = nothing, 1 = all (denoising strength)."""
    mask: str = ""
    """Mask of the picture: a file; white is drawn anew, black stays."""
    mask_blur: Annotated[int, Field(ge=0, le=256)] = 4
    """Width in pixels of the soft edge between what stays and what is new."""
    mask_content: Literal["original", "fill", "noise", "nothing"] = "original"
    """What the masked part starts from: the picture, the colours around it, noise, or nothing (grey)."""
    only_masked: bool = False
    """Draw only the part around the mask, at the full size, and put it back into the picture."""
    mask_padding: Annotated[int, Field(ge=0, le=1024)] = 32
    """Pixels around the mask that are drawn along with only_masked."""
    keep_unmasked: bool = True
    """Pixels outside the mask stay exactly as they are; off = as the model draws them again."""
    outpaint: tuple[Pixels, Pixels, Pixels, Pixels] = (0, 0, 0, 0)
    """Pixels to add to the picture: left, top, right, bottom."""
    controls: tuple[ControlChoice, ...] = ()
    """Pictures that steer the drawing (ControlNet), acting together."""
    hires: HiresChoice | None = None
    """A second pass at a larger size (hires fix)."""
    upscale: UpscaleChoice | None = None
    """Enlarge the picture in tiles."""
    refiner: str = ""
    """Catalog id of an SDXL refiner for the last steps."""
    refiner_at: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Part of the way after which the refiner takes over."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Against burnt colours at high guidance: 0 = off, 0.7 is usual for bases that predict v."""
    true_cfg: Annotated[float, Field(ge=1, le=20)] = 1.0
    """Guidance by the negative prompt for FLUX.1, which has none otherwise; above 1 takes twice the time."""
    subseed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the variation (variation seed); picture i uses subseed + i, and all the same seed."""
    subseed_strength: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far to go from the seed's picture towards the subseed's; 0 = no variation."""
    memory: Literal["auto", "fast", "slicing", "model", "sequential", "group"] = "auto"
    """What to do about memory: auto = the quickest that fits; fast = all on the device; slicing = in pieces;
    model, group, sequential = what is not needed waits in the main memory, from quick to slow."""
    precision: Literal["auto", "whole", "int8", "fp8", "nf4"] = "auto"
    """How the weights of the denoiser and of T5 are kept: whole; int8, fp8, nf4 = rounded to 8 or 4 bits, for
    half or a quarter of the memory; auto = whole, unless nothing quick fits."""
    speed: Literal["plain", "channels_last", "compiled"] = "plain"
    """How the denoiser computes: plain; channels_last = another order in memory, for bases with a UNet;
    compiled = its blocks compiled first, which takes a minute. See docs/benchmarks.md for what pays."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """Of the files: png loses nothing, jpeg and webp are smaller; all say how they were made."""
    quality: Annotated[int, Field(ge=1, le=100)] = 92
    """Of jpeg and webp; 100 = webp without loss."""
    template: Text = ""
    """The prompt as it was written, when chance chose words of it; then `prompt` is final."""
    negative_template: Text = ""
    """The same of `negative`."""
    resolved: tuple[tuple[Text, Text], ...] = ()
    """(prompt, negative) of each picture, where chance chose them; none = the same for all."""
    embeddings: tuple[EmbeddingChoice, ...] = ()
    """Embedding files that the texts name; found when the request is sent."""
    kind: Annotated[str, Field(max_length=40)] = ""
    """What is made, a key of `media.kinds.KINDS`; none = pictures. Set when the request is sent."""
    motion: str = ""
    """Catalog id of a motion adapter, which makes an SD1.5 base draw a video."""
    settings: Annotated[dict[str, Number], Field(max_length=20)] = {}
    """Numbers of bases that make video, sound or 3D, by name: frames, fps, seconds, ..."""

    @model_validator(mode="after")
    def _one_text_a_picture(self) -> Self:
        if self.resolved and len(self.resolved) != self.count:
            raise ValueError(f"resolved has {len(self.resolved)} texts for {self.count} pictures")
        return self

    def texts(self, index: int) -> tuple[str, str]:
        """Prompt and negative prompt of picture `index`."""
        return self.resolved[index] if self.resolved else (self.prompt, self.negative)
