"""What clients of A1111 send. Names, defaults and meanings are A1111's (its page /docs)."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studio.sampling.metadata.said import entries

SIDE = Annotated[int, Field(ge=16, le=4096)]


class Txt2Img(BaseModel):
    """A request of /txt2img. Unknown fields pass; those of `REFUSED` do not."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """As A1111 takes them: null is what was left out."""
        return (
            {k: v for k, v in entries(value).items() if v is not None} if isinstance(value, dict) else value
        )

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 1
    n_iter: Annotated[int, Field(ge=1)] = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: SIDE = 512
    height: SIDE = 512
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    denoising_strength: float | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    override_settings: dict[str, Any] | None = None
    send_images: bool = True


class Img2Img(Txt2Img):
    """A request of /img2img."""

    init_images: list[str] | None = None
    resize_mode: int = 0
    mask: str | None = None
    mask_blur: int | None = None
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0


class Pictures(BaseModel):
    """What both answer."""

    images: list[str]
    """PNG files as base64."""
    parameters: dict[str, Any]
    """The request."""
    info: str
    """JSON: seeds, prompts and A1111's text of each picture."""


class PngInfo(BaseModel):
    """A request of /png-info."""

    image: str


# What would change the picture, and has no counterpart here: said rather than left out in silence.
REFUSED = (
    "restore_faces", "tiling", "styles", "script_name", "hr_checkpoint_name", "hr_prompt",
    "hr_negative_prompt", "hr_resize_x", "hr_resize_y", "firstphase_width", "firstphase_height", "s_churn",
    "hr_sampler_name", "hr_scheduler", "seed_resize_from_w", "seed_resize_from_h",
)  # fmt: skip
