"""What in a recipe rules each other out, and what has no effect. Torch-free.

Asked before a run is queued, and again by the trainer. Where a field counts is said at the field itself, by
`recipe_section.Needs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from registry.errors import BadInput
from trainers.families import FAMILIES
from trainers.priors import check_preservation, check_words
from trainers.recipe import Recipe, recipe_fields
from trainers.recipe_fields import (
    HAVE_AB,
    ONE_RATE,
    OWN_MEAN,
    ObjectiveSection,
    OptimizerSection,
    TrainSection,
)
from trainers.recipe_section import DIFFUSION, FLOW, Needs
from trainers.recipe_text import flatten

LAW = "objective.law"
BITS = {"int8": 8, "fp8": 8, "nf4": 4}  # of a rounded weight
LARGE = 2e9  # parameters of a denoiser whose activations fill a computer; SDXL's keep 12 GiB of a pass
ROOM = 0.8  # of a GPU's memory, for weights that nobody asked to round; the rest is for computing
# Of a shared base: the block that computes, the next one as it is sent and as it is put together, and what
# has no block. FLUX.1's largest are 2.9 % each.
BLOCKS_WHOLE = 0.1
# Bytes of a rounded weight, with its share of what stays whole.
WEIGHT_BYTES = {"int8": 1.04, "fp8": 1.04, "nf4": 0.58}
BY_ITSELF: Final = ("int8", "nf4")  # what is taken where nobody chose; fp8 saves no more than int8
# Shares of the blocks that gradient checkpointing computes again, as they are tried in turn, in words.
CHECKPOINTED = {
    0.25: " for a quarter of the blocks",
    0.5: " for half of the blocks",
    0.75: " for three quarters of the blocks",
    1.0: "",
}
_MARKS: dict[str, tuple[Any, ...]] = {
    name: tuple(info.metadata) for name, info in ObjectiveSection.model_fields.items()
}
FLOW_ONLY = tuple(name for name, marks in _MARKS.items() if FLOW in marks)
DIFFUSION_ONLY = tuple(name for name, marks in _MARKS.items() if DIFFUSION in marks)
# Facts of `circumstances`, in words.
_FACTS = {
    "family.flow": "bases that are trained by flow matching",
    "family.diffusion": "bases that are trained by diffusion",
    "family.t5": "bases that read captions with T5",
    "family.guidance": "bases that take guidance as an input",
    "family.convolutions": "bases with convolutions",
    "adapter.text": "a text encoder that learns along",
    "data.tags": "data.shuffle_tags or data.tag_dropout",
    "train.several": "several processes",
}


@dataclass(frozen=True)
class Traits:
    """What is known of a base beside its family, without loading it.

    Args:
        t5: Whether it has T5; None = as its family.
        guidance_input: Whether it takes guidance as an input; None = as its family.
        noise: Whether its scheduler says that it predicts the noise; None = not known.
    """

    t5: bool | None = None
    guidance_input: bool | None = None
    noise: bool | None = None


def circumstances(values: Mapping[str, Any], traits: Traits = Traits()) -> dict[str, Any]:
    """What decides whether fields count: all values by dotted key, facts of the base, and the law in force.

    Args:
        values: Every field of a recipe by its dotted key; they need not be valid.
        traits: What is known of the base.
    """
    info = FAMILIES[values["family"]]
    guidance, t5, law = traits.guidance_input, traits.t5, values["objective.timestep_law"]
    return {
        **values,
        "family.flow": info.flow,
        "family.diffusion": not info.flow,
        "family.t5": bool(info.t5) if t5 is None else t5,
        "family.guidance": info.guidance_input if guidance is None else guidance,
        "family.convolutions": info.denoiser == "unet",
        "adapter.text": values["adapter.train_text_encoder"] or values["adapter.train_t5"],
        "data.tags": values["data.shuffle_tags"] or values["data.tag_dropout"],
        "train.several": values["train.processes"] > 1,
        LAW: _usual_law(flow=info.flow) if law == "auto" else law,
    }


def unmet(needs: Sequence[Needs], around: Mapping[str, Any]) -> Needs | None:
    """The first mark because of which a field does not count; None = it counts."""
    return next((need for need in needs if not need.met(around)), None)


def idle_remarks(recipe: Recipe, usual: Recipe, traits: Traits) -> list[str]:
    """One line for each value that was set and has no effect.

    Args:
        recipe: What was chosen.
        usual: What it would be by itself: the preset; its values are nobody's choice.
        traits: What is known of the base.
    """
    values, preset = flatten(recipe.model_dump()), flatten(usual.model_dump())
    around = circumstances(values, traits)
    return [
        f"{key} has no effect here: it counts only with {_in_words(need)}"
        for key, facts in recipe_fields().items()
        if values[key] not in (preset[key], facts.default) and (need := unmet(facts.needs, around))
    ]


def check_recipe(recipe: Recipe, traits: Traits = Traits()) -> None:
    """Refuse what the trainer could not do.

    Raises:
        BadInput: names the field and what to do.
    """
    info, adapter = FAMILIES[recipe.family], recipe.adapter
    check_preservation(recipe)
    check_words(recipe)
    check_rates(recipe.optimizer, adapter.method, learns_text=adapter.train_text_encoder or adapter.train_t5)
    _check_precision(recipe)
    _check_sharing(recipe)
    guided = info.guidance_input if traits.guidance_input is None else traits.guidance_input
    check_objective(recipe.objective, flow=info.flow, guidance_input=guided)
    _check_zero_snr(recipe.objective, traits)
    if adapter.train_t5 and not (bool(info.t5) if traits.t5 is None else traits.t5):
        raise BadInput("adapter.train_t5", "is on, but this base has no T5", "set it to false")
    if adapter.conv_rank and adapter.method != "full" and info.denoiser != "unet":
        raise BadInput("adapter.conv_rank", "is set, but this base has no convolutions", "set it to 0")
    for section, scheduler in (
        ("preview", recipe.preview.scheduler),
        ("preservation", recipe.preservation.scheduler),
    ):
        if info.flow and scheduler != "default":
            wrong = f"is {scheduler}, and a base of flow matching draws with its own sampler"
            raise BadInput(f"{section}.scheduler", wrong, "set it to default")


def only_denoiser(recipe: Recipe) -> bool:
    """Whether nothing learns but an adapter on the denoiser, so that its base can be loaded anew."""
    adapter = recipe.adapter
    beside = adapter.method == "full" or adapter.train_text_encoder or adapter.train_t5 or recipe.tokens.words
    return not beside


def first_keeping(train: TrainSection, count: int, width: int, memory: int) -> tuple[str, bool]:
    """How a GPU keeps a frozen part before anything is tried, and whether it is streamed.

    What the recipe leaves open is whole and resident; where that would fill the GPU, as fine as leaves room
    to compute, and where nothing does, streamed: a base that was asked for whole, too.

    Args:
        train: The section of the recipe.
        count: Parameters of the part.
        width: Bytes of one in the compute dtype.
        memory: Bytes of the GPU.
    """
    streamed, room = train.base_streaming == "on", ROOM * memory
    ways = ("whole", *BY_ITSELF) if train.base_weights == "auto" else (train.base_weights,)
    for kept in ways:
        if streamed or count * WEIGHT_BYTES.get(kept, width) <= room:
            return kept, streamed
    return ways[-1], train.base_streaming == "auto"


def first_checkpointing(train: TrainSection, count: int, *, gpu: bool) -> float:
    """Share of the denoiser's blocks that are computed again before anything is tried, beyond the recipe's.

    A GPU takes what it needs in the dry run. Without one nothing is tried, and what SD3.5 and FLUX.1 keep of
    a pass is more than most machines have: from `LARGE` parameters on it is not kept.

    Args:
        train: The section of the recipe.
        count: Parameters of the denoiser.
        gpu: Whether it computes on one.
    """
    return 0.0 if gpu or train.dry_run == "on" or count < LARGE else 1.0


def first_sharing(train: TrainSection, count: int, width: int, memory: int) -> bool:
    """Whether the processes of a run hold the denoiser together before anything is tried.

    Arguments as `first_keeping`. Left open, they do where the whole one would fill a GPU, and a share of it,
    with the blocks that are whole at a time, would not. That rounds no weight, so it comes before rounding.
    """
    room = ROOM * memory
    if train.shares != "auto":
        return train.shares == "on"
    return room < count * width and count * width * shared_part(train.processes) <= room


def shared_part(processes: int) -> float:
    """Part of the denoiser's weights that a GPU holds when so many share them."""
    return min(1.0, 1 / processes + BLOCKS_WHOLE)


def check_rates(section: OptimizerSection, method: str, *, learns_text: bool = False) -> None:
    """Refuse rates that the optimizer or the method does not have.

    Raises:
        BadInput: names the field.
    """
    one = f"{section.name} has one rate for everything"
    if section.lora_plus_ratio != 1 and method not in HAVE_AB:
        what = "a full fine-tune" if method == "full" else method
        raise BadInput("optimizer.lora_plus_ratio", f"{what} has no A and B to tell apart", "set it to 1")
    if section.name in ONE_RATE and (section.lora_plus_ratio != 1 or section.block_lrs):
        raise BadInput("optimizer.name", one, "leave block_lrs and lora_plus_ratio out")
    if section.name in ONE_RATE and learns_text and section.text_encoder_lr != section.lr:
        raise BadInput("optimizer.text_lr", one, "set it to none")
    if section.name in OWN_MEAN and not section.beta1:
        raise BadInput("optimizer.beta1", f"is 0, which {section.name} cannot average with", "set it above 0")


def check_objective(section: ObjectiveSection, *, flow: bool, guidance_input: bool = True) -> None:
    """Refuse what belongs to the other way of training, or to another choice within this one.

    Args:
        section: Of the recipe.
        flow: Whether the base is trained by flow matching, or by diffusion.
        guidance_input: Whether it takes guidance as an input.

    Raises:
        BadInput: names the field.
    """
    others, kind = (DIFFUSION_ONLY, "flow matching") if flow else (FLOW_ONLY, "diffusion")
    refuse_fields(section, others, f"means nothing to a base that is trained by {kind}")
    if not guidance_input:
        refuse_fields(section, ("guidance",), "is an input that this base does not have")
    check_law(section, _usual_law(flow=flow))
    if section.shift in ("dynamic", "off"):
        refuse_fields(section, ("shift_factor",), f"means nothing where objective.shift is {section.shift}")


def check_law(section: ObjectiveSection, usual: str) -> None:
    """Refuse what belongs to another law of the timesteps; `usual` is what "auto" stands for.

    Raises:
        BadInput: names the field.
    """
    law = usual if section.timestep_law == "auto" else section.timestep_law
    others = [name for name, marks in _MARKS.items() if not _fits_law(marks, law)]
    refuse_fields(section, others, f"means nothing where objective.timestep_law is {law}")


def refuse_fields(section: ObjectiveSection, names: Sequence[str], why: str) -> None:
    """Refuse fields of the objective that have another value than their default.

    Raises:
        BadInput: names the first of them.
    """
    for name in names:
        default = type(section).model_fields[name].default
        if getattr(section, name) != default:
            usual = "none" if default is None else str(default).lower()
            raise BadInput(f"objective.{name}", why, f"set it to {usual}, or leave it out")


def _usual_law(*, flow: bool) -> str:
    return "logit_normal" if flow else "uniform"


def _fits_law(marks: Sequence[Any], law: str) -> bool:
    return all(law in mark.values for mark in marks if isinstance(mark, Needs) and mark.what == LAW)


def _check_precision(recipe: Recipe) -> None:
    """Weights of the base learn in the precision of the run, those of an adapter in fp32."""
    if recipe.adapter.method != "full":
        return
    if recipe.train.base_weights not in ("auto", "whole"):
        wrong = f"is {recipe.train.base_weights}, and rounded weights cannot learn"
        raise BadInput("train.base_weights", wrong, "set it to whole, or choose another adapter.method")
    if recipe.train.base_streaming == "on":
        wrong = "is on, and weights that rest elsewhere cannot learn"
        raise BadInput("train.base_streaming", wrong, "set it to off, or choose another adapter.method")
    name, precision = recipe.optimizer.name, recipe.train.precision
    if precision == "fp16":
        raise BadInput("train.precision", "is fp16, in which weights cannot learn", "set it to bf16 or fp32")
    if precision == "bf16" and name in (*ONE_RATE, *OWN_MEAN):
        raise BadInput("optimizer.name", f"{name} cannot train bf16 weights", "use adamw8bit or adafactor")


def _check_sharing(recipe: Recipe) -> None:
    """Only a frozen base of whole weights is shared, by several processes."""
    train = recipe.train
    if train.base_sharding != "on":
        return
    elsewhere = "set it to auto, or train."
    wrong = {
        "and there is one process to hold the base": (train.processes == 1, f"{elsewhere}processes to 2"),
        "and weights that learn are whole on every GPU": (recipe.adapter.method == "full", "set it to auto"),
        f"and train.base_weights is {train.base_weights}": (
            train.base_weights not in ("auto", "whole"),
            f"{elsewhere}base_weights to whole",
        ),
        "and so is train.base_streaming": (train.base_streaming == "on", f"{elsewhere}base_streaming to off"),
    }
    for why, (here, todo) in wrong.items():
        if here:
            raise BadInput("train.base_sharding", f"is on, {why}", todo)


def _check_zero_snr(section: ObjectiveSection, traits: Traits) -> None:
    noise = section.prediction == "epsilon" or (section.prediction == "auto" and traits.noise is True)
    if section.zero_terminal_snr == "on" and noise:
        raise BadInput(
            "objective.zero_terminal_snr",
            "is on, but the base predicts epsilon, which has no answer at zero signal",
            "turn it off, or set objective.prediction=v_prediction",
        )


def _in_words(need: Needs) -> str:
    if need.what in _FACTS:
        return _FACTS[need.what]
    name = "objective.timestep_law" if need.what == LAW else need.what
    return f"{name} {' or '.join(map(str, need.values))}".rstrip() if need.values else f"{name} set"
