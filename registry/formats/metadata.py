"""What an adapter file says about itself: kohya's `ss_*`, ModelSpec 1.0.1, and our own `studio.*`.

All values are text; nested ones are JSON. ModelSpec: https://github.com/Stability-AI/ModelSpec. The `sshs_*`
hashes are kohya's: tensor hash and window hash of the file as it would be with its `ss_*` metadata alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from registry.formats.families import FORMATS, of_variant

# What stays when an adapter is published: nothing that can carry captions, folder names or paths.
_PUBLIC = {
    "format", "ss_base_model_version", "ss_v2", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_network_args", "ss_output_name", "ss_resolution", "ss_steps", "ss_max_train_steps", "ss_num_epochs",
    "ss_epoch", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer", "ss_lr_scheduler",
    "ss_seed", "ss_mixed_precision", "ss_noise_offset", "ss_min_snr_gamma", "ss_num_train_images",
    "ss_total_batch_size", "ss_gradient_accumulation_steps", "ss_clip_skip", "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_training_started_at", "ss_training_finished_at",
    "sshs_model_hash", "sshs_legacy_hash",
    "studio.format", "studio.family", "studio.tensor_sha256", "studio.run_id", "studio.step", "studio.recipe",
    "studio.recipe_hash", "studio.dataset_hash", "studio.base_hash", "studio.base_name",
    "studio.trigger_words", "studio.recommended_weight", "studio.versions",
}  # fmt: skip
_PUBLIC_STARTS = ("modelspec.",)


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What is known of an adapter and of the run that made it; unknown fields stay empty."""

    name: str
    family: str
    rank: int
    alpha: float
    created_at: datetime
    tensor_sha256: str = ""  # identity in the catalog, whatever the layout of the file
    trigger_words: Sequence[str] = ()
    recommended_weight: float = 1.0
    description: str = ""
    author: str = ""
    license: str = ""
    consent: str = ""  # who is shown, and whether they agreed
    tags: Sequence[str] = ()
    base_name: str = ""
    base_hash: str = ""
    variant: str = ""  # of the base: "medium", "schnell"
    prediction_type: str = ""  # "epsilon" or "v_prediction"
    run_id: str = ""
    step: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipe_hash: str = ""
    dataset_name: str = ""
    dataset_hash: str = ""
    captions: Sequence[str] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    parents: Sequence[str] = ()  # tensor hashes of what it was merged from
    versions: Mapping[str, Any] = field(default_factory=dict[str, Any])


def training_metadata(facts: TrainingFacts) -> dict[str, str]:
    """Metadata of an adapter file, without what depends on the written weights (see `with_hashes`)."""
    values = {"format": "pt"} | _kohya(facts) | _modelspec(facts) | _studio(facts)
    return {key: _text(value) for key, value in values.items() if value not in (None, "", [], {})}


def for_publication(metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` without captions, folder names, paths and prompts: only keys that are known to have none."""
    kept = {k: v for k, v in metadata.items() if k in _PUBLIC or k.startswith(_PUBLIC_STARTS)}
    if "studio.recipe" in kept:
        recipe: Any = json.loads(kept["studio.recipe"])
        if isinstance(recipe, dict):  # previews have the person's own prompts, the log names of projects
            private = {"preview", "log"}
            kept["studio.recipe"] = _text({k: v for k, v in recipe.items() if k not in private})  # pyright: ignore[reportUnknownVariableType]
    return kept


def with_hashes(tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with the hashes of the weights as they will be written."""
    own = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    data = memoryview(safetensors.numpy.save(dict(tensors), own))
    tensor_hash = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    return {
        **metadata,
        "sshs_model_hash": tensor_hash,
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": "0x" + tensor_hash,
    }


def _kohya(facts: TrainingFacts) -> dict[str, Any]:
    recipe = facts.recipe
    family = FORMATS.get(facts.family)
    side = _get(recipe, "train.resolution")
    pictures = len(facts.captions)
    alpha = int(facts.alpha) if facts.alpha == int(facts.alpha) else facts.alpha
    frequency = Counter(
        tag.strip() for caption in facts.captions for tag in caption.split(",") if tag.strip()
    )
    subset = {"img_count": pictures, "class_tokens": ", ".join(facts.trigger_words), "num_repeats": 1}
    return {
        "ss_base_model_version": of_variant(family.ss_base_model_version, facts.variant) if family else "",
        "ss_v2": str(family.ss_v2) if family else "",
        "ss_network_module": family.network_module if family else "networks.lora",
        "ss_network_dim": facts.rank,
        "ss_network_alpha": alpha,
        "ss_network_args": _network_args(recipe),
        "ss_output_name": facts.name,
        "ss_sd_model_name": facts.base_name,
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_resolution": f"({side}, {side})" if side else "",
        "ss_steps": facts.step or None,
        "ss_max_train_steps": _get(recipe, "train.max_steps"),
        "ss_learning_rate": _get(recipe, "optimizer.lr"),
        "ss_unet_lr": _get(recipe, "optimizer.lr"),
        "ss_text_encoder_lr": _get(recipe, "optimizer.text_lr"),
        "ss_optimizer": _get(recipe, "optimizer.name"),
        "ss_lr_scheduler": _get(recipe, "schedule.name"),
        "ss_seed": _get(recipe, "train.seed"),
        "ss_mixed_precision": _get(recipe, "train.precision"),
        "ss_noise_offset": _get(recipe, "objective.noise_offset"),
        "ss_min_snr_gamma": _get(recipe, "objective.snr_gamma"),
        "ss_total_batch_size": _get(recipe, "train.batch_size"),
        "ss_gradient_accumulation_steps": _get(recipe, "train.accumulate"),
        "ss_num_train_images": pictures or None,
        "ss_tag_frequency": {facts.dataset_name or "pictures": dict(frequency)} if frequency else "",
        "ss_datasets": [{"subsets": [subset]}] if pictures else "",
        "ss_training_started_at": facts.started_at.timestamp() if facts.started_at else "",
        "ss_training_finished_at": facts.ended_at.timestamp() if facts.ended_at else "",
    } | _lycoris(recipe)


def _network_args(recipe: Mapping[str, Any]) -> dict[str, str]:
    rank = _get(recipe, "adapter.conv_rank")
    if not rank:
        return {}
    return {"conv_dim": str(rank), "conv_alpha": str(_get(recipe, "adapter.conv_alpha") or rank)}


def _lycoris(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """LyCORIS' module and arguments, for the methods whose files it reads and kohya's own networks do not."""
    method = _get(recipe, "adapter.method")
    if method not in ("loha", "lokr", "dora"):
        return {}
    args = _network_args(recipe) | {"algo": "lora" if method == "dora" else str(method)}
    if method == "dora":
        args["dora_wd"] = "True"
    if method == "lokr":
        args["factor"] = str(_get(recipe, "adapter.lokr_factor"))
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": args}


def _modelspec(facts: TrainingFacts) -> dict[str, Any]:
    family = FORMATS.get(facts.family)
    side = _get(facts.recipe, "train.resolution")
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(facts.prediction_type, "")
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": of_variant(family.architecture, facts.variant) if family else "",
        "implementation": "diffusers",
        "title": facts.name,
        "description": facts.description,
        "author": facts.author,
        "date": facts.created_at.isoformat(timespec="seconds"),
        "license": facts.license,
        "usage_hint": f"weight {facts.recommended_weight:g}",
        "tags": ", ".join(facts.tags),
        "trigger_phrase": ", ".join(facts.trigger_words),
        "resolution": f"{side}x{side}" if side else "",
        "prediction_type": prediction,
        "merged_from": ", ".join(facts.parents),
    }
    return {f"modelspec.{key}": value for key, value in values.items()}


def _studio(facts: TrainingFacts) -> dict[str, Any]:
    values = {
        "format": "1",
        "family": facts.family,
        "tensor_sha256": facts.tensor_sha256,
        "trigger_words": list(facts.trigger_words),
        "recommended_weight": facts.recommended_weight,
        "base_name": facts.base_name,
        "base_hash": facts.base_hash,
        "run_id": facts.run_id,
        "step": facts.step or None,
        "recipe": dict(facts.recipe),
        "recipe_hash": facts.recipe_hash,
        "dataset_name": facts.dataset_name,
        "dataset_hash": facts.dataset_hash,
        "parents": list(facts.parents),
        "consent": facts.consent,
        "versions": dict(facts.versions),
    }
    return {f"studio.{key}": value for key, value in values.items()}


def _get(recipe: Mapping[str, Any], dotted: str) -> Any:
    """Value at "section.field", or None."""
    section, _, name = dotted.partition(".")
    table: Any = recipe.get(section)
    return table.get(name) if isinstance(table, Mapping) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
