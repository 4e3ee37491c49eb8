"""The table of bases that make video, sound and 3D. Torch-free.

A new kind is a row of `KINDS`, and a maker and a writer where what it makes is new (`making.MAKERS`,
`writing.WRITERS`). Forms, command line, checks, catalog and sampler go by the table alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.records import Base, Sample
    from studio.workspace import Workspace

VIDEO, SOUND, THING = "video", "sound", "3d"
MOTION = "motion"  # `Base.part` of a motion adapter
Configs = Callable[[str], dict[str, Any]]  # config.json of a component; {} when it is not here


@dataclass(frozen=True)
class Medium:
    """What comes out: how people call one of it, its file, and what lies beside that under the same name."""

    word: str
    suffix: str
    beside: tuple[str, ...] = ()


MEDIA = {
    VIDEO: Medium("video", ".webp"),
    SOUND: Medium("sound", ".wav"),
    THING: Medium("thing", ".webp", (".ply",)),
}


@dataclass(frozen=True)
class Setting:
    """A number that a kind is made with, beside those that requests for pictures have.

    Args:
        name: In `SampleRequest.settings`.
        label: On the page.
        default: None = the base's own.
        least, most: Bounds, both allowed.
        argument: Of the pipeline; "" = only the maker or the writer reads it.
        whole: Whole numbers only.
        step: Values are multiples of it, for whole numbers.
        limit: What this base can do at most, by its configs; None = it does not say.
    """

    name: str
    label: str
    default: float | None
    least: float
    most: float
    argument: str = ""
    whole: bool = True
    step: int = 1
    limit: Callable[[Configs], float | None] | None = None

    @property
    def said(self) -> str:
        """Its name and bounds in a line."""
        return f"{self.name} {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Kind:
    """One row.

    Args:
        label: For people.
        medium: What comes out, a key of MEDIA.
        pipelines: Classes in model_index.json that are of this kind.
        modules: Where model_index.json may name components of, beside diffusers and transformers.
        takes: Fields of a request that count, beside those that always do.
        steps, cfg: Where the person says nothing.
        guidance: The pipeline's argument for `cfg`.
        settings: Numbers of its own.
        size: (width, height) where the person says nothing; None = by the base's configs.
        side: What sides are multiples of, by the configs of the base.
        fixed: Arguments that are always the same.
        small: Arguments when memory is short.
        rate: Component and key of its config with the sampling rate in Hz.
        half: Computes in fp16 on a GPU.
    """

    label: str
    medium: str
    pipelines: tuple[str, ...]
    takes: frozenset[str]
    steps: int
    cfg: float
    modules: tuple[str, ...] = ()
    guidance: str = "guidance_scale"
    settings: tuple[Setting, ...] = ()
    size: tuple[int, int] | None = None
    side: Callable[[Configs], int] = lambda _: 8
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    small: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rate: tuple[str, str] = ("", "")
    half: bool = True

    @property
    def sized(self) -> bool:
        """Whether a request says width and height."""
        return "width" in self.takes


def _longest_sound(configs: Configs) -> float | None:
    """Seconds that Stable Audio was made for."""
    transformer, vae = configs("transformer"), configs("vae")
    try:
        hop = prod(vae["downsampling_ratios"])
        return float(transformer["sample_size"]) * hop / float(vae["sampling_rate"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _most_frames(configs: Configs) -> float | None:
    """Frames that a motion adapter knows the order of."""
    found = configs("motion_adapter").get("motion_max_seq_length")
    return found if isinstance(found, int) else None


def _whole_cells(configs: Configs) -> int:
    """Pixels of a latent cell on the lowest level of a UNet that halves whole numbers of them only."""
    levels = [configs(name).get("block_out_channels") or (0, 0, 0, 0) for name in ("vae", "unet")]
    return 2 ** sum(len(blocks) - 1 for blocks in levels)


_TEXT = frozenset({"prompt", "negative"})
_SIZE = frozenset({"width", "height"})
_TURNTABLE = (
    Setting("side", "Side of its pictures in pixels", 64, 32, 512, step=32),
    Setting("samples", "Samples along a ray (detail of the pictures)", 64, 4, 256, step=4),
    Setting("fps", "Pictures a second", 10, 1, 60),
    Setting("grid", "Cells along a side of the mesh; 0 = no mesh", 128, 0, 256),
)

KINDS: dict[str, Kind] = {
    "svd": Kind(
        label="Stable Video Diffusion",
        medium=VIDEO,
        pipelines=("StableVideoDiffusionPipeline",),
        takes=frozenset({"image", "quality"}) | _SIZE,
        steps=25,
        cfg=3.0,
        guidance="max_guidance_scale",  # of the last frame; that of the first is 1
        settings=(
            Setting("frames", "Frames", None, 2, 100, "num_frames"),
            Setting("fps", "Frames a second", 7, 1, 60, "fps"),
            Setting("motion", "How much moves (motion bucket)", 127, 0, 255, "motion_bucket_id"),
            Setting(
                "noise",
                "Noise on the picture (more = less alike)",
                0.02,
                0,
                1,
                "noise_aug_strength",
                whole=False,
            ),
        ),
        size=(1024, 576),
        side=_whole_cells,
        fixed={"output_type": "np", "decode_chunk_size": 8},
        small={"decode_chunk_size": 1},
    ),
    "animatediff": Kind(
        label="AnimateDiff",
        medium=VIDEO,
        pipelines=("AnimateDiffPipeline",),
        takes=frozenset({"quality"}) | _TEXT | _SIZE,
        steps=25,
        cfg=7.5,
        settings=(
            Setting("frames", "Frames", 16, 2, 64, "num_frames", limit=_most_frames),
            Setting("fps", "Frames a second", 8, 1, 60),
        ),
        fixed={"output_type": "np"},
        small={"decode_chunk_size": 1},
    ),
    "audioldm2": Kind(
        label="AudioLDM 2",
        medium=SOUND,
        pipelines=("AudioLDM2Pipeline",),
        modules=("audioldm2",),
        takes=_TEXT,
        steps=200,
        cfg=3.5,
        settings=(Setting("seconds", "Seconds", 10, 0.01, 60, "audio_length_in_s", whole=False),),
        fixed={"output_type": "np"},
        rate=("vocoder", "sampling_rate"),
    ),
    "stable-audio": Kind(
        label="Stable Audio",
        medium=SOUND,
        pipelines=("StableAudioPipeline",),
        modules=("stable_audio",),
        takes=_TEXT,
        steps=100,
        cfg=7.0,
        settings=(
            Setting(
                "seconds", "Seconds", None, 0.01, 100, "audio_end_in_s", whole=False, limit=_longest_sound
            ),
        ),
        fixed={"output_type": "np"},
        rate=("vae", "sampling_rate"),
    ),
    "shap-e": Kind(
        label="Shap-E",
        medium=THING,
        pipelines=("ShapEPipeline",),
        modules=("shap_e",),
        takes=frozenset({"prompt", "quality"}),
        steps=64,
        cfg=15.0,
        settings=_TURNTABLE,
        fixed={"output_type": "latent"},
        half=False,
    ),
    "shap-e-image": Kind(
        label="Shap-E from a picture",
        medium=THING,
        pipelines=("ShapEImg2ImgPipeline",),
        modules=("shap_e",),
        takes=frozenset({"image", "quality"}),
        steps=64,
        cfg=3.0,
        settings=_TURNTABLE,
        fixed={"output_type": "latent"},
        half=False,
    ),
}
ANIMATED = "animatediff"  # the kind that a motion adapter makes of a base for pictures
ANIMATES = "sd15"  # the family of these bases


def kind_name(base: "Base", motion: str = "") -> str:
    """Key of KINDS for what a base makes, with a motion adapter or without; "" = pictures."""
    if base.part in MEDIA:
        return base.family
    return ANIMATED if motion else ""


def word_of(kind: str) -> str:
    """How people call one of what is made; also for a kind that this version does not know."""
    return MEDIA[KINDS[kind].medium].word if kind in KINDS else "picture"


def is_seen(kind: str) -> bool:
    """Whether a page can show it as a picture, moving or not."""
    return kind not in KINDS or KINDS[kind].medium != SOUND


def beside_of(ws: "Workspace", sample: "Sample", index: int) -> list[Path]:
    """What lies beside file `index` of a sample and was made with it: the mesh of a thing."""
    kind = KINDS.get(str(sample.request.get("kind", "")))
    main = ws.resolve(sample.files[index])
    paths = (main.with_suffix(suffix) for suffix in (MEDIA[kind.medium].beside if kind else ()))
    return [path for path in paths if path.is_file()]
