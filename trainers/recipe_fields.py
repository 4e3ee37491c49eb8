"""The sections of a recipe: every field with its unit, range and meaning.

The docstring under a field feeds `--help`, the form in the app and docs/recipes.md. Fields are strict: text
is no number, 1.5 is no whole number, NaN is no float. A field that may be none also reads the word "none",
because TOML has no null.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainers.recipe_adapter import ADDED, FITS_SOME_METHODS, HAVE_AB, AdapterSection
from trainers.recipe_section import (
    DIFFUSION,
    FLOW,
    BlockFactors,
    Count,
    Fraction,
    LearningRate,
    Needs,
    Prompt,
    SamplerName,
    Section,
    Side,
)

__all__ = [
    "FITS_SOME_METHODS", "AdapterSection", "CheckpointsSection", "DataSection", "LogSection",
    "ObjectiveSection", "OptimizerSection", "PreviewSection", "ScheduleSection", "Section", "TrainSection",
]  # fmt: skip


ONE_RATE = ("prodigy",)  # optimizers that find their rate themselves, and have one for everything
OWN_MEAN = ("schedulefree",)  # optimizers that average weights themselves and take no schedule
_ADAMS = ("auto", "adamw", "adamw8bit", "paged_adamw8bit", *ONE_RATE, *OWN_MEAN)
_LIONS = ("lion", "lion8bit")
_ADAM, _MEANS = Needs("optimizer.name", _ADAMS), Needs("optimizer.name", (*_ADAMS, *_LIONS))
_ANY_RATE = Needs("optimizer.name", tuple(n for n in (*_ADAMS, *_LIONS, "adafactor") if n not in ONE_RATE))
_SCHEDULED = Needs("optimizer.name", tuple(n for n in (*_ADAMS, *_LIONS, "adafactor") if n not in OWN_MEAN))


class OptimizerSection(Section):
    """How weights follow gradients."""

    name: Literal[
        "auto", "adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "adafactor", "prodigy",
        "schedulefree",
    ] = "auto"  # fmt: skip
    """auto = adamw8bit on a GPU, else adamw. paged: its state moves to system memory when the GPU's is short.
    lion wants a third to a tenth of AdamW's rate. adafactor needs least memory. prodigy finds its own rate:
    set lr to 1. schedulefree (AdamW) averages by itself: schedule.name and train.ema_decay mean nothing to
    it."""
    lr: LearningRate = 1e-4
    """Peak learning rate of the denoiser's adapter."""
    text_lr: Annotated[LearningRate | None, Needs("adapter.text")] = None
    """Peak learning rate of the text encoder's adapter; none = lr."""
    block_lrs: Annotated[BlockFactors, _ANY_RATE] = Field(default_factory=dict)
    """Factor on the rate by regular expression that must match a layer's whole path: "up_blocks.*" = 0.5.
    The first match counts; paths as in adapter.block_ranks."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=64), _ANY_RATE, Needs("adapter.method", HAVE_AB)] = 1.0
    """LoRA+ (Hayou et al. 2024): B learns this many times faster than A; 1 = off, the paper uses 16."""
    weight_decay: Fraction = 0.01
    """Decoupled weight decay."""
    beta1: Annotated[float, Field(ge=0, lt=1), _MEANS] = 0.9
    """Decay of the gradient's running mean."""
    beta2: Annotated[float | None, Field(ge=0, lt=1), _MEANS] = None
    """Decay of the gradient's running square (lion: of its second mean); none = 0.999, lion 0.99."""
    eps: Annotated[float, Field(gt=0, le=1), _ADAM] = 1e-8
    """Added to the denominator."""

    @property
    def text_encoder_lr(self) -> float:
        """Rate in force on the text encoder: `text_lr`, or lr."""
        return self.lr if self.text_lr is None else self.text_lr


class ScheduleSection(Section):
    """How the learning rate moves over the run."""

    name: Annotated[
        Literal[
            "constant", "cosine", "linear", "polynomial", "cosine_with_restarts", "rex", "warmup_stable_decay"
        ],
        _SCHEDULED,
    ] = "cosine"
    """Shape after the warmup. rex: slow at first, steep at the end (Chen et al. 2022)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the steps over which the rate rises from 0 to its peak."""
    min_lr: Annotated[Fraction, _SCHEDULED] = 0.0
    """Rate at the last step, as a fraction of the peak."""
    cycles: Annotated[
        int, Field(ge=1, le=100), _SCHEDULED, Needs("schedule.name", ("cosine_with_restarts",))
    ] = 1
    """How many descents; cosine_with_restarts only."""
    power: Annotated[float, Field(gt=0, le=10), _SCHEDULED, Needs("schedule.name", ("polynomial",))] = 1.0
    """Exponent; polynomial only."""
    decay: Annotated[
        float, Field(gt=0, le=1), _SCHEDULED, Needs("schedule.name", ("warmup_stable_decay",))
    ] = 0.2
    """Fraction of the steps after the warmup over which the rate falls; warmup_stable_decay only."""


class ObjectiveSection(Section):
    """What the denoiser is asked to predict, and how errors are weighed."""

    prediction: Annotated[Literal["auto", "epsilon", "v_prediction"], DIFFUSION] = "auto"
    """auto = what the base's scheduler says."""
    zero_terminal_snr: Annotated[Literal["auto", "on", "off"], DIFFUSION] = "auto"
    """Rescale the noise schedule so that its last step is pure noise (Lin et al. 2023); needs v_prediction.
    auto = what the base's scheduler says."""
    snr_gamma: Annotated[float | None, Field(gt=0, le=100), DIFFUSION] = None
    """Gamma of the min-SNR weights (Hang et al. 2023, sec. 3.4); usual value 5; none = off."""
    weighting: Annotated[
        Literal["auto", "off", "min_snr", "soft_min_snr", "debiased", "p2", "epsilon"], DIFFUSION
    ] = "auto"
    """Loss weight by timestep. auto = min_snr when snr_gamma is set, else off. soft_min_snr: without
    min_snr's kink. debiased: 1 / sqrt(SNR) (Yu et al. 2023). p2: 1 / (1 + SNR) (Choi et al. 2022). epsilon:
    v-predictions weigh as predictions of the noise would."""
    loss: Literal["l2", "l1", "huber", "smooth_l1"] = "l2"
    """Error of a single value: square, absolute, or pseudo-Huber, which forgives odd pictures."""
    huber_c: Annotated[float, Field(gt=0, le=1), Needs("objective.loss", ("huber", "smooth_l1"))] = 0.1
    """Error at which huber and smooth_l1 turn from square to straight, in standard deviations."""
    huber_schedule: Annotated[
        Literal["constant", "exponential", "snr"], Needs("objective.loss", ("huber", "smooth_l1"))
    ] = "snr"
    """How that point moves with the timestep: constant, or from 1 where there is little noise to huber_c
    (Khrapov et al. 2024)."""
    noise_offset: Annotated[Fraction, DIFFUSION] = 0.0
    """Spread of an extra offset per channel of the noise; for very dark or bright pictures; 0 = off."""
    noise_offset_varies: Annotated[bool, DIFFUSION, Needs("objective.noise_offset")] = False
    """Draw the spread of the offset from 0 to noise_offset for each picture."""
    pyramid_discount: Annotated[float, Field(ge=0, lt=1), DIFFUSION] = 0.0
    """Multi-resolution noise (Whitaker 2023): weight of each coarser level against the finer one; usual
    values 0.3 to 0.8; 0 = off."""
    pyramid_levels: Annotated[int, Field(ge=1, le=16), DIFFUSION, Needs("objective.pyramid_discount")] = 6
    """Levels of the multi-resolution noise at most."""
    input_perturbation: Fraction = 0.0
    """Extra noise in the input that the target does not have (Ning et al. 2023); usual value 0.1; 0 = off."""
    timestep_min: Annotated[int, Field(ge=0, le=999)] = 0
    """Lowest training timestep, of 1000."""
    timestep_max: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Training timesteps stay below this, of 1000."""
    timestep_law: Literal["auto", "uniform", "logit_normal", "sigmoid", "mode"] = "auto"
    """How times are drawn (Esser et al. 2024, sec. 3.1); auto = logit_normal for flow matching, uniform for
    diffusion."""
    logit_mean: Annotated[float, Field(ge=-5, le=5), Needs("objective.law", ("logit_normal",))] = 0.0
    """logit_normal: mean before the sigmoid; above 0 = more noise, so layout over detail."""
    logit_std: Annotated[float, Field(gt=0, le=5), Needs("objective.law", ("logit_normal",))] = 1.0
    """logit_normal: spread before the sigmoid; smaller = the middle of the way only."""
    sigmoid_scale: Annotated[float, Field(gt=0, le=5), Needs("objective.law", ("sigmoid",))] = 1.0
    """sigmoid: factor of the normal number before the sigmoid; 1 = logit_normal(0, 1)."""
    mode_scale: Annotated[float, Field(ge=-1, le=1.75), Needs("objective.law", ("mode",))] = 1.29
    """mode: above 0 favours the middle of the way, below 0 its ends."""
    shift: Annotated[Literal["auto", "static", "dynamic", "off"], FLOW] = "auto"
    """Flow matching: moves times towards noise. dynamic = more for larger pictures; auto = the base's own."""
    shift_factor: Annotated[
        float | None, Field(gt=0, le=100), FLOW, Needs("objective.shift", ("auto", "static"))
    ] = None
    """Flow matching: factor of a static shift, 1 = no shift; none = the base's own (SD3.5: 3)."""
    flow_weighting: Annotated[Literal["off", "sigma_sqrt", "cosmap"], FLOW] = "off"
    """Flow matching: loss weight by time; sigma_sqrt = t^-2, cosmap = 2 / (pi (1 - 2 t + 2 t^2))."""
    guidance: Annotated[float, Field(ge=0, le=100), FLOW, Needs("family.guidance")] = 1.0
    """Guidance input while training, for bases that have one (FLUX.1-dev); 1 = no guidance in the target."""

    @field_validator("timestep_max")
    @classmethod
    def _some_timesteps(cls, value: int, info: Any) -> int:
        if value <= info.data.get("timestep_min", 0):
            raise ValueError("above objective.timestep_min")
        return value

    @field_validator("weighting")
    @classmethod
    def _one_weight(cls, value: str, info: Any) -> str:
        gamma = info.data.get("snr_gamma")
        if gamma is not None and value not in ("auto", "min_snr", "soft_min_snr"):
            raise ValueError(f"auto, min_snr or soft_min_snr while objective.snr_gamma is {gamma:g}")
        if gamma is None and value in ("min_snr", "soft_min_snr"):
            raise ValueError("another one while objective.snr_gamma is none")
        return value


class DataSection(Section):
    """How pictures and captions are shown to the model."""

    trigger: Annotated[str, Field(max_length=100)] = ""
    """Word that calls the adapter; replaces [trigger] in captions, or goes in front of those without it."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of pictures shown with an empty caption, which keeps guidance working."""
    flip: bool = False
    """Show pictures mirrored half of the time; wrong for writing and for asymmetric characters."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each picture comes in an epoch."""
    buckets: bool = True
    """Keep aspect ratios: pictures of a shape train together. Off = square crops."""
    bucket_step: Annotated[int, Field(ge=0, le=256, multiple_of=8)] = 0
    """Bucket sides are multiples of this many pixels; 0 = the family's."""
    max_aspect: Annotated[float, Field(ge=1, le=4), Needs("data.buckets")] = 2.0
    """Longest allowed ratio of a bucket's long side to its short one; narrower pictures are cropped."""
    upscale: bool = False
    """Enlarge small pictures to the full resolution. Off = they train at their own size."""
    crop: Literal["center", "top", "random", "focus"] = "center"
    """Which part stays when a picture does not fit its bucket exactly. top keeps heads; random draws one of
    crop_variants at each showing; focus = around the center of the mask, center for pictures without one."""
    crop_variants: Annotated[int, Field(ge=1, le=16), Needs("data.crop", ("random",))] = 4
    """Different crops of a picture that random draws from; each has latents of its own in the cache."""
    masks: bool = True
    """Weigh the loss by the pictures' masks: white counts, black counts mask_floor. A picture without a mask
    counts whole."""
    mask_floor: Annotated[Fraction, Needs("data.masks")] = 0.1
    """Weight of what the mask leaves out, 0 to 1; above 0 keeps backgrounds from falling apart."""
    class_word: Annotated[str, Field(max_length=100)] = ""
    """What the subject is ("dog"): written behind the trigger word in captions that do not have it."""
    variations: bool = True
    """Lines of a caption are alternatives, and so is what stands in {one|another}: one is drawn at each
    showing. Off = lines are joined and braces stay."""
    shuffle_tags: bool = False
    """Show a caption's tags in another order at each showing; for captions made of tags."""
    tag_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of tags left out of a caption, 0 to below 1; kept ones are never left out."""
    keep_tokens: Annotated[int, Field(ge=0, le=100), Needs("data.tags")] = 0
    """How many tags at the beginning stay where they are."""
    keep_separator: Annotated[str, Field(max_length=30), Needs("data.tags")] = "|||"
    """Text in a caption before which all tags stay where they are (and behind a second one); "" = none."""
    caption_separator: Annotated[str, Field(min_length=1, max_length=30), Needs("data.tags")] = ","
    """What stands between tags."""
    caption_variants: Annotated[int, Field(ge=1, le=64)] = 8
    """How many versions of each line are made when something in it is drawn (order, tags left out, braces);
    each is encoded once."""
    require_captions: bool = False
    """Refuse to start when a picture has no caption."""
    text_length: Annotated[int, Field(ge=0, le=512), Needs("family.t5")] = 0
    """Tokens of a caption that T5 reads; 0 = as the base's pipeline (SD3.5, FLUX.1-schnell 256, dev 512)."""


class TrainSection(Section):
    """How long, how much at once, and in which precision."""

    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Pictures per forward pass and process."""
    accumulate: Annotated[int, Field(ge=1, le=256)] = 1
    """Forward passes per optimizer step."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of everything random: order, noise, timesteps, dropout, initial weights."""
    resolution: Side = 512
    """Side in pixels of the square whose area no bucket exceeds."""
    resolutions: Annotated[tuple[Side, ...], Field(max_length=8, strict=False)] = ()
    """Smaller sizes beside it (512, 768 below 1024): each picture is also shown once an epoch at every one
    that does not enlarge it. Sizes that are not below train.resolution do not count."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute precision; adapter weights stay fp32. auto = bf16 on a GPU that has it, else fp16; CPU fp32."""
    base_weights: Annotated[Literal["auto", "whole", "int8", "fp8", "nf4"], ADDED] = "auto"
    """How the frozen base's weights are kept: whole, or rounded to 8 bits (int8; fp8 = e4m3, less exact) or
    4 for half or a quarter of the memory, a little slower (the blocks of the denoiser, and T5 where it is
    frozen). auto = whole, unless a GPU has no room for that."""
    base_streaming: Annotated[Literal["auto", "on", "off"], ADDED] = "auto"
    """Let the blocks of the frozen base rest in the main memory and copy each to the GPU in time: a tenth of
    its GPU memory, at the speed of the bus. auto = when nothing else fits."""
    base_sharding: Annotated[Literal["auto", "on", "off"], ADDED, Needs("train.several")] = "auto"
    """Let the processes hold the blocks of the frozen base together (FSDP), each a share of whole weights:
    less memory on each GPU, and each block is sent between them two times a step. auto = when the GPUs have
    no room for the whole base each."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about 40 % slower, far less memory. Off = for as many
    blocks as a GPU's memory asks for, see train.dry_run."""
    checkpointed_blocks: Annotated[float, Field(gt=0, le=1), Needs("train.gradient_checkpointing")] = 1.0
    """Share of the denoiser's blocks whose activations are recomputed, spread evenly: fewer = quicker, more
    memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the denoiser's repeated blocks, for fewer and larger operations after a minute or more at the
    start; not over a rounded or streamed base. auto = on a GPU, where trial passes (once per machine and
    setting) show that the steps left make up for it."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm; 0 = off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1), _SCHEDULED] = 0.99
    """Decay of the running mean of the adapter's weights, which is what is saved; 0 = off."""
    ema_device: Annotated[Literal["auto", "cpu"], _SCHEDULED, Needs("train.ema_decay")] = "auto"
    """Where the running mean lies. auto = where the weights are; cpu = in system memory, which spares a GPU
    4 bytes per trained weight and costs a transfer at each update."""
    ema_every: Annotated[int, Field(ge=1, le=1000), _SCHEDULED, Needs("train.ema_decay")] = 1
    """Steps between updates of the running mean; its decay is per step all the same."""
    dry_run: Literal["auto", "on", "off"] = "auto"
    """Try the largest batch before the first step, and save memory if it does not fit: gradient
    checkpointing of a quarter of the blocks, a half, three quarters, all, then an 8-bit optimizer, then
    batches in pieces, then a base shared by the processes, in 8 and in 4 bits, streamed. auto = on a GPU."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes (one per GPU); the batch grows with them."""
    num_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads per process; 0 = automatic."""

    @field_validator("resolutions", mode="before")
    @classmethod
    def _read_sides(cls, value: Any) -> Any:
        """ "512, 768" and one number are lists, too: command lines and forms write them so."""
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        sides = list(value) if isinstance(value, list | tuple) else [value]
        return [int(s) if isinstance(s, str) and s.strip().isdecimal() else s for s in sides]

    @property
    def shares(self) -> Literal["auto", "on", "off"]:
        """`base_sharding` as far as the rest of the section leaves it open."""
        closed = self.processes == 1 or self.base_weights not in ("auto", "whole")
        return "off" if closed or self.base_streaming == "on" else self.base_sharding

    @property
    def sizes(self) -> tuple[int, ...]:
        """Resolutions in force, ascending: `resolution` and what `resolutions` has below it."""
        return tuple(
            sorted({side for side in self.resolutions if side < self.resolution} | {self.resolution})
        )


class CheckpointsSection(Section):
    """What is saved on the way."""

    every: Annotated[int, Field(ge=1, le=1_000_000)] = 250
    """Steps between checkpoints; the last step always saves one."""
    keep: Annotated[int, Field(ge=2, le=1000)] = 3
    """How many of the newest stay; at least 2, so that a damaged one is not the last."""
    keep_best: bool = True
    """Also keep the best: the one with the lowest loss at fixed noise and timesteps, on held-out pictures if
    there are any, else on pictures that are trained on."""
    held_out: Annotated[int | None, Field(ge=0, le=64), Needs("checkpoints.keep_best")] = None
    """Pictures that are never trained on, so that it shows when others are learned by heart. none or auto = a
    tenth of 40 or more different pictures, at most 8, of fewer none; 0 = every picture is trained on."""

    @field_validator("held_out", mode="before")
    @classmethod
    def _read_auto(cls, value: Any) -> Any:
        return None if value == "auto" else value


class PreviewSection(Section):
    """Pictures drawn while training."""

    every: Count = 250
    """Steps between previews; 0 = off."""
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=16, strict=False), Needs("preview.every")] = ()
    """What to draw; [trigger] stands for the trigger word. Empty = the first captions of the data set."""
    negative: Annotated[Prompt, Needs("preview.every")] = ""
    """What to avoid."""
    steps: Annotated[int, Field(ge=1, le=200), Needs("preview.every")] = 20
    """Sampling steps."""
    cfg: Annotated[float, Field(ge=0, le=50)] = 7.0
    """Guidance scale; 1 = none."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Needs("preview.every")] = 0
    """Seed of the first prompt's picture; the same at every step, so that pictures can be compared."""
    size: Annotated[str, Field(pattern=r"^(\d{2,4}x\d{2,4})?$"), Needs("preview.every")] = ""
    """WIDTHxHEIGHT in pixels; empty = the training resolution, square."""
    scheduler: Annotated[SamplerName, Needs("preview.every"), DIFFUSION] = "default"
    """Sampler; default = the base's own, which is the only one for flow matching."""


class LogSection(Section):
    """Where the curves go, beside metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Send to Weights & Biases; needs WANDB_API_KEY in the environment."""
    wandb_project: Annotated[str, Field(min_length=1, max_length=128), Needs("log.wandb")] = "lora-studio"
    """Project name there."""
