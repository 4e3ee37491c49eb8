"""Records as cards."""

from pathlib import Path
from typing import Any

import streamlit as st

from registry.records import Adapter, Base, Dataset, FileState, Image, Run, Sample
from studio.app.components.gallery import Card, Frame
from studio.app.routes import file_url, picture_url
from studio.app.shell import workspace
from studio.app.words import METHOD_WORDS, ORIGIN_WORDS, STATE_TONES, STATE_WORDS, ago, plural, size
from studio.sampling.media.kinds import KINDS, beside_of, is_seen, word_of
from trainers.families import FAMILIES
from trainers.rundir import RunDir

WORDS = 3  # trigger words and tags on a card
BADGE_COLOURS = {"accent": "primary", "good": "green", "warn": "orange", "bad": "red"}
FILE_MARKS = {
    FileState.NEW: ("being read", ""),
    FileState.CHANGED: ("file changed", "warn"),
    FileState.MISSING: ("file missing", "bad"),
}


def family_label(family: str) -> str:
    """`sd15` -> "Stable Diffusion 1.5"."""
    return FAMILIES[family].label if family in FAMILIES else (family or "unknown family")


def adapter_preview(adapter: Adapter, *, full: bool = False) -> str:
    """URL of an adapter's picture, or ""."""
    if not adapter.preview:
        return ""
    url = picture_url("adapter", adapter.id, version=adapter.tensor_sha256)
    return f"{url}&full" if full else url


def adapter_card(adapter: Adapter) -> Card:
    """Picture, name, what it is for, how it is called up."""
    preview = adapter_preview(adapter)
    badges = marks(adapter)
    badges += [(word, "accent") for word in adapter.trigger_words[:WORDS]]
    badges += [("★" * adapter.rating, "")] if adapter.rating else []
    badges += [(tag, "") for tag in adapter.tags[:WORDS]]
    return Card(
        id=adapter.id,
        title=adapter.name,
        lines=(
            f"{family_label(adapter.family)} · {kind_words(adapter)}",
            f"{ORIGIN_WORDS.get(adapter.origin, adapter.origin)} {ago(adapter.created_at)}",
        ),
        images=(preview,) if preview else (),
        badges=tuple(badges),
        favourite=adapter.favourite,
        placeholder="no preview",
    )


def marks(adapter: Adapter) -> list[tuple[str, str]]:
    """What needs attention, as badges: (words, tone)."""
    found = [FILE_MARKS[adapter.file_state]] if adapter.file_state in FILE_MARKS else []
    return found + ([] if adapter.family else [("not identified", "warn")])


def ranks(adapter: Adapter) -> str:
    """The rank of its layers, lowest and highest where they differ; "" of a method without any."""
    known = [rank for rank in adapter.metadata.get("ranks") or () if isinstance(rank, int) and rank]
    low, high = min(known, default=adapter.rank), max(known, default=adapter.rank)
    return f"{low} to {high}" if low != high else str(high or "")


def kind_words(adapter: Adapter) -> str:
    """Method and rank, the method only when it is not plain LoRA."""
    rank = f"rank {ranks(adapter)}" if adapter.rank else ""
    method = "" if adapter.method == "lora" and rank else method_label(adapter.method)
    return " ".join(filter(None, (method, rank)))


def method_label(method: str) -> str:
    """`loha` -> "LoHa"; what we have no name for, as it is."""
    return METHOD_WORDS.get(method, method or "unknown kind")


def dataset_card(dataset: Dataset) -> Card:
    """Its first four pictures, name and count."""
    images = workspace().catalog.list(Image, dataset_id=dataset.id, order="position", limit=4)
    urls = tuple(picture_url("thumb", image.blob) for image in images)
    return Card(
        id=dataset.id,
        title=dataset.name,
        lines=(plural(dataset.image_count, "picture"), ago(dataset.created_at)),
        images=urls if len(urls) == 4 else urls[:1],
        badges=((dataset.trigger, "accent"),) if dataset.trigger else (),
        placeholder="no pictures",
    )


def run_card(run: Run) -> Card:
    """Its newest preview, state and progress."""
    pictures = [item for item in workspace().run_dir(run.id).previews() if not item.get("base")]
    newest = max(pictures, key=lambda item: item["step"], default=None)
    url = picture_url("run", run.id, Path(newest["file"]).name, version=str(newest["step"])) if newest else ""
    return Card(
        id=run.id,
        title=run.name,
        lines=(f"step {run.step:,} of {run.steps:,}", ago(run.created_at)),
        images=(url,) if url else (),
        badges=((STATE_WORDS[run.state], STATE_TONES.get(run.state, "")),),
        placeholder="no preview yet",
    )


def sample_cards(sample: Sample, bases: dict[str, Base]) -> list[Card]:
    """One card per picture of a sample; the id is `<sample>/<index>`."""
    prompt = str(sample.request.get("prompt", ""))
    varied = bool(sample.request.get("subseed_strength"))
    name = "subseed" if varied else "seed"
    first, word = int(sample.request.get(name, 0)), "variation" if varied else "seed"
    used = len(sample.adapters)
    with_what = (
        plural(used, "adapter")
        if used
        else f"{bases[sample.base_id].name if sample.base_id in bases else 'base'} alone"
    )
    kind = str(sample.request.get("kind", ""))
    title = prompt or (KINDS[kind].label if kind in KINDS else "no prompt")
    return [
        Card(
            id=f"{sample.id}/{index}",
            title=title,
            lines=(f"{word} {(first + index) % 2**32} · {with_what}",),
            label=f"Use the settings of this {word_of(kind)}: {prompt}",
            **_shown(sample, index, prompt),
        )
        for index in range(len(sample.files))
    ]


def _shown(sample: Sample, index: int, prompt: str) -> dict[str, Any]:
    """How a file of a sample is seen, heard and saved: fields of its card."""
    kind = str(sample.request.get("kind", ""))
    if not is_seen(kind):
        return {"placeholder": word_of(kind), "sound": file_url("sample", sample.id, index)}
    url = picture_url("sample", sample.id, index)
    # A small version of what moves would stand still.
    fields: dict[str, Any] = {"images": (f"{url}?full" if kind else url,), "zoom": f"{url}?full"}
    fields["zoom_text"] = prompt
    for path in beside_of(workspace(), sample, index):
        suffix = path.suffix.removeprefix(".")
        fields["file"] = file_url("sample", sample.id, index, suffix)
        fields["file_text"] = f"Save the mesh ({suffix.upper()})"
    return fields


def film_rows(rundir: RunDir, run_id: str) -> list[tuple[str, list[Frame]]]:
    """Previews of a run per prompt, the base first, then by step."""
    rows: dict[str, dict[int, Frame]] = {}
    for item in rundir.previews():
        base = bool(item.get("base"))
        step = -1 if base else int(item["step"])
        url = picture_url("run", run_id, Path(item["file"]).name)
        label = "without" if base else f"step {step:,}"
        text = f"{item['prompt']} · {'base without the adapter' if base else label}"
        rows.setdefault(str(item["prompt"]), {})[step] = Frame(url, f"{url}?full", label, text, base)
    return [(prompt, [frames[step] for step in sorted(frames)]) for prompt, frames in rows.items()]


def state_badge(run: Run) -> None:
    """A run's state in a word."""
    colour = BADGE_COLOURS.get(STATE_TONES.get(run.state, ""), "gray")
    st.badge(STATE_WORDS[run.state], color=colour)  # pyright: ignore[reportArgumentType]


def file_line(adapter: Adapter) -> str:
    """Method, rank and size in a line."""
    if not adapter.rank and adapter.method == "embedding":
        return f"new words, {size(adapter.size)}"
    return f"{adapter.method} rank {adapter.rank}, alpha {adapter.alpha:g}, {size(adapter.size)}"
