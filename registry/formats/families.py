"""What each family's adapter files look like. A new family is a row here (and a grammar in `names`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import unknown_module
from registry.formats.names import (
    CLIP_TEXT,
    FLUX_TRANSFORMER,
    SD3_TRANSFORMER,
    SD_UNET,
    SDXL_UNET,
    T5_TEXT,
    Grammar,
    remembered,
)
from registry.formats.original import BFL, MMDIT, SGM, OriginalNames, Place

TEXT_ROOT, PEFT_ROOT = "text_model.", "base_model.model."
# In front of underscored names of the denoiser: LyCORIS in SimpleTuner, kohya's OFT.
DENOISER_PREFIXES = ("lycoris_", "oft_unet_")
# In front of dotted paths -> component ("" = the denoiser, "t5" wherever it is): ai-toolkit, BFL, ComfyUI.
ROOTS = {
    "model.diffusion_model.": "",
    "diffusion_model.": "",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "t5",
}
# The oldest names of attention projections in a text encoder.
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class FamilyFormat:
    """Key tables and names of one family.

    Args:
        name: As in the catalog.
        context_dim: Input width of attn2.to_k, which is what the text encoder gives; 0 where there is none.
        grammars: By pipeline component, the denoiser first.
        kohya_prefixes: Prefix -> component; the first prefix of a component is the one we write.
        auto_layout: What loads everywhere.
        ss_base_model_version: By variant of the base, "" = any other.
        architecture: ModelSpec's, likewise.
        sd_version: In A1111's sidecar.
        network_module: kohya's module that trains such files.
        original: Names of the denoiser in published checkpoints, where kohya goes by them.
        projected: Text encoders of class CLIPTextModelWithProjection, which has `text_model.` in memory too.
        one_alpha: Whether diffusers takes one alpha for all attention layers of a component.
        conv_attention: `proj_in` and `proj_out` of attention are convolutions of 1 x 1, not linear.
    """

    name: str
    context_dim: int
    grammars: Mapping[str, Grammar]
    kohya_prefixes: Mapping[str, str]
    auto_layout: str
    ss_base_model_version: Mapping[str, str]
    architecture: Mapping[str, str]
    sd_version: str
    ss_v2: bool = False
    network_module: str = "networks.lora"
    original: OriginalNames | None = None
    projected: frozenset[str] = frozenset()
    one_alpha: bool = True
    conv_attention: bool = False

    @property
    def denoiser(self) -> str:
        """Component that is not a text encoder."""
        return next(iter(self.grammars))

    @property
    def t5(self) -> str:
        """Component that is a T5, "" where there is none."""
        return next((name for name, grammar in self.grammars.items() if grammar is T5_TEXT), "")

    def kohya_name(self, module: str) -> str:
        """`unet.conv_in` -> `lora_unet_conv_in`.

        Raises:
            BadInput: kohya has no name for it, or one that means more or other rows, see `Place`.
        """
        component, place = self.place_of_module(module)
        if place.special:
            wrong = f"is {place.path} in kohya's layout, with other rows"
            raise BadInput(f"module {shown(module)}", wrong, "only LoRA can be converted; use peft")
        return self.prefix_of(component) + place.name

    def prefix_of(self, component: str) -> str:
        """The prefix that we write."""
        return next(p for p, owner in self.kohya_prefixes.items() if owner == component)

    def place_of_module(self, module: str) -> tuple[str, Place]:
        """Component and place in kohya's files of a full module name.

        Raises:
            BadInput: kohya has no name for it.
        """
        component, _, path = module.partition(".")
        if self.original is None or component != self.denoiser:
            return component, Place(path, (path,))
        place = self.original.of_module(path)
        if place is None:
            raise BadInput(f"module {shown(module)}", "has no name in kohya's layout", "use another format")
        return component, place

    def place_of_kohya(self, name: str) -> tuple[str, Place]:
        """Component and place of a kohya name; published names count before diffusers' spelling.

        Raises:
            BadInput: no module of this family has that name.
        """
        found = self._underscored(name)
        if found is None:
            raise unknown_module(name, self.name)
        return found

    @cached_property
    def place_of(self) -> Callable[[str], tuple[str, Place] | None]:
        """Component and place of a module as a file of any tool spells it; None when it is none of ours.

        With underscores behind a prefix, or a dotted path: of diffusers' class with or without its component,
        or of the published checkpoint.
        """
        return remembered(self._place_of)

    def _place_of(self, name: str) -> tuple[str, Place] | None:
        return (
            self._dotted(modern_path(name)) if "." in name else self._underscored(name) or self._dotted(name)
        )

    def _underscored(self, name: str) -> tuple[str, Place] | None:
        for prefix, component in self._prefixes.items():
            if not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            if component == self.denoiser and (place := self.published.of_name(rest)):
                return component, place
            if path := self.grammars[component].from_underscores(rest):
                return component, Place(path, (path,))
        return None

    @cached_property
    def _prefixes(self) -> dict[str, str]:
        return {**self.kohya_prefixes, **dict.fromkeys(DENOISER_PREFIXES, self.denoiser)}

    def _dotted(self, path: str) -> tuple[str, Place] | None:
        for root, part in ROOTS.items():
            if path.startswith(root):
                special = {"": self.denoiser, "t5": self.t5}
                return self._inside(special.get(part, part), path.removeprefix(root))
        head, _, tail = path.partition(".")
        if head in self.grammars:
            return self._inside(head, tail)
        found = (self._inside(component, path) for component in self.grammars)
        return next((place for place in found if place), None)

    def _inside(self, component: str, path: str) -> tuple[str, Place] | None:
        """Place of a path within a component: diffusers' spelling, else the published one."""
        if component not in self.grammars:
            return None
        for own in (path, TEXT_ROOT + path):
            if self.grammars[component].knows(own):
                return component, Place(own, (own,))
        place = self.published.of_path(path) if component == self.denoiser else None
        return (component, place) if place else None

    @property
    def published(self) -> OriginalNames:
        """Names of the denoiser in published checkpoints, whether kohya goes by them or not."""
        return self.original or SGM

    def module_of_kohya(self, name: str) -> str:
        """Inverse of `kohya_name`.

        Raises:
            BadInput: no module of this family has that name, or several are one there.
        """
        component, place = self.place_of_kohya(name)
        if place.special:
            wrong = f"holds the rows of {self.name} in another way ({', '.join(place.modules)})"
            raise BadInput(f"module {shown(name)}", wrong, "only LoRA can be converted")
        return f"{component}.{place.modules[0]}"

    def module_of_path(self, path: str) -> str:
        """Full module name of a dotted path, with or without its component, with or without `text_model.`.

        Raises:
            BadInput: no module of this family has that path.
        """
        found = self._dotted(path)
        if found is None or found[1].special:
            raise unknown_module(path, self.name)
        return f"{found[0]}.{found[1].modules[0]}"


def modern_path(path: str) -> str:
    """The path of today's model classes for one of any age, still with its component when it had one."""
    path = path.removeprefix(PEFT_ROOT).replace(".processor.", ".")
    head, _, leaf = path.rpartition(".")
    if head.endswith(".self_attn") and leaf in _TEXT_PROJECTIONS:
        return f"{head}.{_TEXT_PROJECTIONS[leaf]}"
    return f"{path}.0" if leaf == "to_out" else path


def _stable_diffusion(
    name: str, context_dim: int, version: str, architecture: Mapping[str, str]
) -> FamilyFormat:
    return FamilyFormat(
        name=name,
        context_dim=context_dim,
        grammars={"unet": SD_UNET, "text_encoder": CLIP_TEXT},
        kohya_prefixes={"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"},
        auto_layout="kohya",
        ss_base_model_version={"": version},
        ss_v2=version == "sd_v2",
        conv_attention=version == "sd_v1",
        architecture=architecture,
        sd_version="SD2" if version == "sd_v2" else "SD1",
    )


_SDXL = FamilyFormat(
    name="sdxl",
    context_dim=2048,
    grammars={"unet": SDXL_UNET, "text_encoder": CLIP_TEXT, "text_encoder_2": CLIP_TEXT},
    kohya_prefixes={"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"},
    auto_layout="kohya",
    ss_base_model_version={"": "sdxl_base_v1-0"},
    architecture={"": "stable-diffusion-xl-v1-base/lora"},
    sd_version="SDXL",
    original=SGM,
    projected=frozenset({"text_encoder_2"}),
)
# "lora_transformer_" is OneTrainer's, with diffusers' spelling behind it.
_SD35 = FamilyFormat(
    name="sd35",
    context_dim=0,
    grammars={
        "transformer": SD3_TRANSFORMER,
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": CLIP_TEXT,
        "text_encoder_3": T5_TEXT,
    },
    kohya_prefixes={
        "lora_unet_": "transformer",
        "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2",
        "lora_te3_": "text_encoder_3",
        "lora_transformer_": "transformer",
    },
    auto_layout="diffusers",
    ss_base_model_version={"": "5-large", "medium": "5-medium"},
    architecture={"": "stable-diffusion-v3.5-large/lora", "medium": "stable-diffusion-v3.5-medium/lora"},
    sd_version="SD3",
    network_module="networks.lora_sd3",
    original=MMDIT,
    projected=frozenset({"text_encoder", "text_encoder_2"}),
    one_alpha=False,
)
# kohya numbers FLUX's T5 third, as in SD3; its first versions and OneTrainer second.
_FLUX1 = FamilyFormat(
    name="flux1",
    context_dim=0,
    grammars={"transformer": FLUX_TRANSFORMER, "text_encoder": CLIP_TEXT, "text_encoder_2": T5_TEXT},
    kohya_prefixes={
        "lora_unet_": "transformer",
        "lora_te1_": "text_encoder",
        "lora_te3_": "text_encoder_2",
        "lora_te2_": "text_encoder_2",
        "lora_te_": "text_encoder",
        "lora_transformer_": "transformer",
    },
    auto_layout="diffusers",
    ss_base_model_version={"": "flux1"},
    architecture={"": "flux-1-dev/lora", "schnell": "flux-1-schnell/lora"},
    sd_version="Other",
    network_module="networks.lora_flux",
    original=BFL,
    one_alpha=False,
)

_SD21_ARCHITECTURES = {"": "stable-diffusion-v2-768-v/lora", "eps": "stable-diffusion-v2-512/lora"}

FORMATS: dict[str, FamilyFormat] = {
    family.name: family
    for family in (
        _stable_diffusion("sd15", 768, "sd_v1", {"": "stable-diffusion-v1/lora"}),
        _stable_diffusion("sd21", 1024, "sd_v2", _SD21_ARCHITECTURES),
        _SDXL,
        _SD35,
        _FLUX1,
    )
}


def of_variant(table: Mapping[str, str], variant: str) -> str:
    """Entry of a base's variant ("medium", "v-inpaint"), else the usual one."""
    return table.get(variant, table[""])


def family_format(family: str) -> FamilyFormat:
    """Row of `family`; an unidentified one ("") reads under the names of sd15, which sd21 shares.

    Raises:
        BadInput: no table of that family.
    """
    if family and family not in FORMATS:
        raise BadInput(
            f"family {shown(family)}", "has no table of key names", f"use one of {', '.join(FORMATS)}"
        )
    return FORMATS[family or "sd15"]
