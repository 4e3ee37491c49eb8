"""Groups of parameters that share a learning rate: per-block rates, LoRA+, and what must not decay."""

import re

from registry.errors import BadInput
from trainers.fitting import check_rates
from trainers.flat import Flat
from trainers.layers import EXAMPLE
from trainers.method_table import METHODS
from trainers.methods import Trainables
from trainers.recipe_fields import OptimizerSection

# Where a layer's path ends in the key of one of its parameters.
_PARAMETER = re.compile(r"\.(lora_|hada_|lokr_|oft_R).*$|\.[^.]+$")


def make_flats(
    trainables: Trainables, section: OptimizerSection, denoiser_name: str, tokens_lr: float = 1e-3
) -> list[Flat]:
    """One flat buffer per role and rate, the denoiser's first; a single one per role in most recipes.

    LoRA+ (Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models"): the rate of B is
    `lora_plus_ratio` times that of A.

    Args:
        trainables: What learns.
        section: Its per-block rates and LoRA+ ratio.
        denoiser_name: Component whose paths stand without its name in the recipe.
        tokens_lr: Rate of new words, which have a group of their own and do not decay.

    Raises:
        BadInput: a pattern matches no layer, or the optimizer or the method cannot do it.
    """
    check_rates(section, trainables.method if trainables.separable else "full")
    patterns = {text: re.compile(text) for text in section.block_lrs}
    undecayed, used = METHODS[trainables.method].undecayed, set[str]()
    flats: list[Flat] = []
    for role, named in (("denoiser", trainables.denoiser), ("text", trainables.text)):
        groups: dict[tuple[float, bool], dict[str, object]] = {}
        for key, parameter in named.items():
            path = _PARAMETER.sub("", key).removeprefix(f"{denoiser_name}.")
            text = next((text for text, pattern in patterns.items() if pattern.fullmatch(path)), None)
            factor = 1.0
            if text is not None:
                used.add(text)
                factor = section.block_lrs[text]
            if key.endswith(".lora_B.weight"):
                factor *= section.lora_plus_ratio
            groups.setdefault((factor, not key.endswith(undecayed)), {})[key] = parameter
        flats += [Flat(group, role, factor=f, decay=decay) for (f, decay), group in groups.items()]  # pyright: ignore[reportArgumentType]
    if trainables.tokens:
        flats.append(Flat(trainables.tokens, "tokens", factor=tokens_lr / section.lr, decay=False))
    for text in section.block_lrs:
        if text not in used:
            raise BadInput(
                "optimizer.block_lrs", f"{text!r} decides about no layer", f"paths look like {EXAMPLE}"
            )
    return flats
