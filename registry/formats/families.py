"""What each family's adapter files look like. A new family is a row here (and a grammar in `names`)."""

from collections.abc import Mapping
from dataclasses import dataclass

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import unknown_module
from registry.formats.names import CLIP_TEXT, SD_UNET, Grammar

TEXT_ROOT = "text_model."


@dataclass(frozen=True)
class FamilyFormat:
    """Key tables and names of one family."""

    name: str  # as in the catalog
    context_dim: int  # input width of attn2.to_k: what the text encoder gives
    grammars: Mapping[str, Grammar]  # by pipeline component
    kohya_prefixes: Mapping[
        str, str
    ]  # prefix -> component; the first prefix of a component is the one we write
    auto_layout: str  # what loads everywhere
    ss_base_model_version: str
    ss_v2: bool
    architecture: str  # ModelSpec
    sd_version: str  # in A1111's sidecar

    def kohya_name(self, module: str) -> str:
        """`unet.conv_in` -> `lora_unet_conv_in`."""
        component, _, path = module.partition(".")
        prefix = next(p for p, owner in self.kohya_prefixes.items() if owner == component)
        return prefix + path.replace(".", "_")

    def module_of_kohya(self, name: str) -> str:
        """Inverse of `kohya_name`.

        Raises:
            BadInput: no module of this family has that name.
        """
        for prefix, component in self.kohya_prefixes.items():
            if name.startswith(prefix):
                path = self.grammars[component].from_underscores(name.removeprefix(prefix))
                if path:
                    return f"{component}.{path}"
        raise unknown_module(name, self.name)

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
        ss_base_model_version=version,
        ss_v2=version == "sd_v2",
        architecture=architecture,
        sd_version="SD2" if version == "sd_v2" else "SD1",
    )


FORMATS: dict[str, FamilyFormat] = {
    family.name: family
    for family in (
        _stable_diffusion("sd15", 768, "sd_v1", "stable-diffusion-v1/lora"),
        _stable_diffusion("sd21", 1024, "sd_v2", "stable-diffusion-v2-768-v/lora"),
    )
}


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
