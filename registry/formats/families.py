"""What each family's adapter files look like. A new family is a row here (and a grammar in `names`)."""

from collections.abc import Mapping
from dataclasses import dataclass

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
)
from registry.formats.original import BFL, MMDIT, SGM, OriginalNames, Place

TEXT_ROOT = "text_model."


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
        for prefix, component in self.kohya_prefixes.items():
            if not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            if self.original and component == self.denoiser and (place := self.original.of_name(rest)):
                return component, place
            if path := self.grammars[component].from_underscores(rest):
                return component, Place(path, (path,))
        raise unknown_module(name, self.name)

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
        head, _, tail = path.partition(".")
        candidates = [(head, tail)] if head in self.grammars else [(c, path) for c in self.grammars]
        for component, rest in candidates:
            for form in (rest, TEXT_ROOT + rest):
                if self.grammars[component].knows(form):
                    return f"{component}.{form}"
        raise unknown_module(path, self.name)


def _stable_diffusion(name: str, context_dim: int, version: str, architecture: str) -> FamilyFormat:
    return FamilyFormat(
        name=name,
        context_dim=context_dim,
        grammars={"unet": SD_UNET, "text_encoder": CLIP_TEXT},
        kohya_prefixes={"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"},
        auto_layout="kohya",
        ss_base_model_version={"": version},
        ss_v2=version == "sd_v2",
        conv_attention=version == "sd_v1",
        architecture={"": architecture},
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

FORMATS: dict[str, FamilyFormat] = {
    family.name: family
    for family in (
        _stable_diffusion("sd15", 768, "sd_v1", "stable-diffusion-v1/lora"),
        _stable_diffusion("sd21", 1024, "sd_v2", "stable-diffusion-v2-768-v/lora"),
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
