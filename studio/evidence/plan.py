"""What an evidence sheet is made from: checkpoints, strengths, prompts, seeds, and the pictures to be like.

Prompts that ask for what was trained are the run's preview prompts and, as far as there are too few, captions
of its pictures and everyday prompts with the trigger word, in turn; prior prompts are the same without the
trigger word, so that the base knows all of their words. Settings are those that a person starts with at this
base.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict

from registry.errors import BadInput, several
from registry.hashing import hash_json
from registry.records import Adapter, Base, Dataset, Run, RunState
from studio.compare.axes import NONE, Value
from studio.compare.build import base_request
from studio.compare.spec import Spec, make_spec
from studio.demo.prompts import PROMPTS as DRAWN_BY_POCKET
from studio.evidence.encoders import checked
from studio.evidence.figures import Prompt
from studio.runs.frozen import manifest_of
from studio.sampling.chosen import ready_adapter, steps_of
from trainers.captions import wording
from trainers.plan import final_caption, replace_trigger, word_pattern
from trainers.recipe import Recipe, thaw
from trainers.rundir import ManifestItem

if TYPE_CHECKING:
    from studio.workspace import Workspace

T = TypeVar("T")
WEIGHTS = (0.5, 0.75, 1.0, 1.25)  # beside 0, the base alone
PROMPTS, PRIORS, SEEDS = 4, 2, 4
MOST_CHECKPOINTS = 12  # of a run, evenly over its steps
MOST_TRAINING = 256  # pictures that likeness is told from, evenly over the data set
PLACES = ("in the snow", "on a table")  # beside a caption that is the only one, without a trigger word
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of a terminal; a tab and a new line are no harm
SYNTAX = re.compile(r"[\\()\[\]{}]|_(?=_)|(?<=<)[lL]")  # of prompts, see docs/sampling.md
FIRST_SEED = 4001  # away from the seeds of previews
EVERYDAY = ("a photograph of a city street", "a bowl of fruit on a table", "a house by a lake")


class Subject(BaseModel):
    """An adapter or checkpoint that is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str  # of an adapter, or RUN@STEP
    name: str
    step: int = 0


class Plan(BaseModel):
    """All that decides the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    subjects: tuple[Subject, ...]
    """Least trained first."""
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    weights: tuple[float, ...]
    """Without 0."""
    training: tuple[str, ...]
    """Blobs of the pictures to be like."""
    encoder: str = ""
    """Folder or hub id of an image encoder; "" = without."""

    @property
    def order(self) -> list[str]:
        """Ids of the subjects, least trained first."""
        return [subject.id for subject in self.subjects]

    def named(self, id: str) -> str:
        """How a subject is called; "" is the base alone."""
        return next((subject.name for subject in self.subjects if subject.id == id), "the base alone")


@dataclass(frozen=True)
class Wishes:
    """What a person may say otherwise; empty = as usual."""

    checkpoints: tuple[int, ...] = ()  # steps
    prompts: tuple[str, ...] = ()
    priors: tuple[str, ...] = ()
    seeds: int = SEEDS
    weights: tuple[float, ...] = ()
    dataset: str = ""  # for an adapter that no run of this workspace made
    base: str = ""  # likewise
    encoder: str = ""


@dataclass(frozen=True)
class _Known:
    """What is known of the training."""

    recipe: Recipe | None
    trigger: str
    captions: tuple[str, ...]
    blobs: tuple[str, ...]


def plan_of_run(ws: "Workspace", run: Run, wishes: Wishes) -> Plan:
    """The plan for the checkpoints of a run, and adapters of it at other steps.

    Raises:
        BadInput: it has no such checkpoint, or its pictures are gone.
    """
    return _plan(ws, run.base_id, _subjects(ws, run, wishes.checkpoints), _of_run(ws, run, wishes), wishes)


def plan_of_adapter(ws: "Workspace", adapter: Adapter, wishes: Wishes) -> Plan:
    """The plan for one adapter.

    Raises:
        BadInput: its base or its pictures are not known.
    """
    adapter = ready_adapter(ws, adapter.id)
    if wishes.checkpoints:
        raise BadInput("checkpoints", "are of a run, not of an adapter", "name the run instead")
    if wishes.base and adapter.base_id:
        raise BadInput("base", "is known: it is the one that the adapter was made for", "leave --base out")
    base = adapter.base_id or (ws.catalog.get(Base, wishes.base).id if wishes.base else "")
    if not base:
        raise BadInput(f"adapter {adapter.name}", "has no base that is known here", "name one: --base NAME")
    run = ws.catalog.find(Run, adapter.run_id) if adapter.run_id else None
    known = _of_run(ws, run, wishes) if run else _of_dataset(ws, adapter, wishes)
    return _plan(ws, base, (Subject(id=adapter.id, name=adapter.name, step=adapter.step),), known, wishes)


def spec_of_plan(ws: "Workspace", plan: Plan) -> Spec:
    """The grid that is drawn for a plan.

    Raises:
        BadInput: a value is out of range, or there are too many cells.
    """
    base = base_request(ws, plan.base)
    texts = [prompt.text for prompt in plan.prompts]
    axes: dict[str, Sequence[Value]] = {
        "checkpoint": (NONE, *plan.order),
        "weight": plan.weights,
        "prompt": texts,
        "seed": plan.seeds,
    }
    labels: dict[str, Sequence[str]] = {
        "checkpoint": (NONE, *(subject.name for subject in plan.subjects)),
        "weight": [f"{weight:g}" for weight in plan.weights],
        "prompt": texts,
        "seed": [str(seed) for seed in plan.seeds],
    }
    return make_spec(base, axes, labels)


def plan_hash(plan: Plan) -> str:
    """Two sheets of the same plan show the same."""
    return hash_json(plan.model_dump(mode="json"))


def spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most `most` of the items, evenly."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(at * (len(items) - 1) / max(1, most - 1))] for at in range(most))


def without_word(text: str, word: str) -> str:
    """A prompt without a word, and without the comma or the space that it leaves."""
    if not word:
        return text
    left = word_pattern(word).sub("", text)
    parts = (" ".join(part.split()) for part in left.split(","))
    return ", ".join(part for part in parts if part)


def literal(text: str) -> str:
    """A text as a prompt that says just that: brackets, wildcards and tags in it mean nothing."""
    return SYNTAX.sub(r"\\\g<0>", text)


def _plan(ws: "Workspace", base: str, subjects: tuple[Subject, ...], known: _Known, wishes: Wishes) -> Plan:
    if not 2 <= wishes.seeds <= 64:
        raise BadInput("seeds", f"{wishes.seeds} is not from 2 to 64", "without a second one nothing differs")
    weights = tuple(sorted({weight for weight in wishes.weights or WEIGHTS if weight != 0}))
    if not weights:
        raise BadInput("weights", "there is none but 0, which is the base alone", "write for example 0.5,1")
    plain = everyday(ws.catalog.get(Base, base))
    return Plan(
        base=base,
        subjects=subjects,
        prompts=_prompts(known, wishes, plain),
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + wishes.seeds)),
        weights=weights,
        training=spread(known.blobs, MOST_TRAINING),
        encoder=checked(wishes.encoder) if wishes.encoder else "",
    )


def _subjects(ws: "Workspace", run: Run, wanted: Sequence[int]) -> tuple[Subject, ...]:
    """Checkpoints that verify, and adapters at steps that no checkpoint is kept of."""
    made = {
        step: Subject(id=f"{run.id}@{step}", name=f"{run.name}@{step}", step=step)
        for step in steps_of(ws, run)
    }
    for adapter in ws.catalog.list(Adapter, run_id=run.id, trashed_at=None):
        if adapter.step not in made:
            made[adapter.step] = Subject(id=adapter.id, name=adapter.name, step=adapter.step)
    missing = sorted(set(wanted) - set(made))
    there = ", ".join(map(str, sorted(made)))
    if missing:
        raise BadInput(
            f"run {run.name}", f"has nothing at step {missing[0]}", f"there is {there}" if there else ""
        )
    if not made:
        if not run.state.active and run.state is not RunState.QUEUED:
            do = "go on with it, bring one back from the trash, or choose another run"
            raise BadInput(f"run {run.name}", "has ended and nothing of it is left to judge", do)
        raise BadInput(
            f"run {run.name}", "has no checkpoint yet", "wait for the first, or choose another run"
        )
    steps = wanted or spread(sorted(made), MOST_CHECKPOINTS)
    return tuple(made[step] for step in sorted(set(steps)))


def _of_run(ws: "Workspace", run: Run, wishes: Wishes) -> _Known:
    if wishes.dataset:
        raise BadInput("data set", "is known: it is that of the run", "leave --dataset out")
    recipe = thaw(run.recipe)
    items = [item for item in manifest_of(ws, run) or [] if not item.role]
    taught = {item.pixel_hash for item in items}
    images = ws.catalog.lineage.run_images(run.id)
    blobs = [one.blob for one in images if one.blob and (not taught or one.pixel_hash in taught)]
    captions = tuple(_caption(item, recipe) for item in items)
    return _Known(recipe, recipe.data.trigger, captions, _there(ws, blobs, f"run {run.name}"))


def _of_dataset(ws: "Workspace", adapter: Adapter, wishes: Wishes) -> _Known:
    if not wishes.dataset:
        do = "name a data set of such pictures: --dataset NAME"
        raise BadInput(f"adapter {adapter.name}", "was not trained here, so its pictures are unknown", do)
    from studio.datasets.ingest import images_of

    dataset = ws.catalog.get(Dataset, wishes.dataset)
    images = images_of(ws, dataset)
    trigger = next(iter(adapter.trigger_words), dataset.trigger)
    captions = tuple(final_caption(image.caption, trigger) for image in images)
    return _Known(
        None, trigger, captions, _there(ws, [one.blob for one in images], f"data set {dataset.name}")
    )


def _there(ws: "Workspace", blobs: Sequence[str], owner: str) -> tuple[str, ...]:
    """Blobs whose file is there, each once.

    Raises:
        BadInput: fewer than two are.
    """
    found = tuple(blob for blob in dict.fromkeys(blobs) if ws.blobs.path(blob).is_file())
    if len(found) < 2:
        do = "likeness needs two at least: make a data set of such pictures"
        raise BadInput(owner, f"has {several(len(found), 'different picture')} with a file", do)
    return found


def _caption(item: ManifestItem, recipe: Recipe) -> str:
    return wording(item, recipe.data, recipe.train.seed).version(0, 0)


def everyday(base: Base) -> tuple[str, ...]:
    """Prompts that a base can draw and that ask for nothing in particular.

    The pocket bases know the words of their own grammar alone.
    """
    return DRAWN_BY_POCKET if base.builtin else EVERYDAY


def _prompts(known: _Known, wishes: Wishes, plain: Sequence[str]) -> tuple[Prompt, ...]:
    """What asks for the thing, then prior prompts."""
    _check_texts(wishes)
    about = wishes.prompts or _about(known, plain)
    prior = wishes.priors or _priors(known, about, plain)
    if not wishes.prompts:  # training shows captions as they stand, without the sampler's syntax
        about = tuple(literal(text) for text in about)
        prior = wishes.priors or tuple(literal(text) for text in prior)
    if not about:
        raise BadInput("prompts", "there is no caption to take one from", "give two: --prompt")
    if len(set(about)) < 2:
        raise BadInput("prompts", "one alone asks for it", "give two: what differs between them is measured")
    both = dict.fromkeys(
        [*((text, True) for text in about), *((text, False) for text in prior if text not in about)]
    )
    return tuple(Prompt(text=text, about=asks) for text, asks in both)


def _check_texts(wishes: Wishes) -> None:
    for text in (*wishes.prompts, *wishes.priors):
        if not text.strip() or CONTROL.search(text):
            wrong = "has a control character" if text.strip() else "is empty"
            raise BadInput(f"prompt {text[:40]!r}", wrong, "write what is to be drawn")
    if same := set(wishes.prompts) & set(wishes.priors):
        do = "take it out of one of them: a prior prompt does not ask for what was trained"
        raise BadInput(f"prompt {min(same)[:40]!r}", "is both a prompt and a prior prompt", do)


def _about(known: _Known, plain: Sequence[str]) -> tuple[str, ...]:
    """The run's own prompts; as far as there are too few, captions and prompts that no picture has, in turn.

    Copies show where captions ask for them, what was learnt where they do not.
    """
    own, class_word = list[str](), ""
    if known.recipe is not None:
        data, class_word = known.recipe.data, known.recipe.data.class_word
        own = [replace_trigger(text, data.trigger, class_word) for text in known.recipe.preview.prompts]
    captions = [text for text in dict.fromkeys(known.captions) if text]
    new = [final_caption(text, known.trigger, class_word) for text in plain] if known.trigger else []
    new = [text for text in new if text not in captions]
    taken = spread(captions, PROMPTS if not new else PROMPTS // 2)
    mixed = [text for pair in zip_longest(taken, new) for text in pair if text]
    found = list(dict.fromkeys([*own, *mixed]))[: max(PROMPTS, len(set(own)))]
    if len(found) == 1:  # every picture has the same caption
        found += [f"{found[0]}, {place}" for place in PLACES]
    return tuple(found)


def _priors(known: _Known, about: Sequence[str], plain: Sequence[str]) -> tuple[str, ...]:
    usual = tuple(plain[:PRIORS])
    if not known.trigger:
        return usual
    class_word = known.recipe.data.class_word if known.recipe else ""
    called = f"{known.trigger} {class_word}".strip()
    stripped = dict.fromkeys(without_word(text.replace(called, class_word), known.trigger) for text in about)
    return spread([text for text in stripped if text and text not in about], PRIORS) or usual
