"""A request's texts made ready before it is queued: choices made, adapters and embeddings found.

Free of torch.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from registry.errors import BadInput, NotFound
from registry.files import file_stem
from registry.hashing import sha256_file
from registry.records import Adapter
from studio.sampling.chosen import find_adapter as find_chosen
from studio.sampling.prompts import embeddings
from studio.sampling.prompts.tags import AdapterTag, take_tags
from studio.sampling.prompts.wildcards import FOLDER, Wildcards, has_choices, resolve
from studio.sampling.request import AdapterChoice, EmbeddingChoice, SampleRequest

if TYPE_CHECKING:
    from studio.workspace import Workspace

_CANDIDATES = 2_000  # adapters among which near names are looked for
_NEAR = 0.65  # likeness of a name that may have been meant: "inc" and "ink", not "nope" and "nometa"


def ready(ws: "Workspace", request: SampleRequest, family: str) -> tuple[SampleRequest, dict[str, Path]]:
    """The request as it can be drawn, and the embedding files that it names, by word.

    Choices by chance are made for each picture by its own seed, unless `template` says that they are made.
    `<lora:...>` tags become adapters and leave the texts; one that is chosen already gets their weight added.

    Raises:
        BadInput: an adapter, a wildcard or an embedding is missing or not as it was; one line.
    """
    request = _with_adapters(ws, _chosen(ws, request), family)
    texts = [text for index in range(request.count) for text in request.texts(index)]
    files = embeddings.named_in(list(dict.fromkeys(texts)), ws.home / embeddings.FOLDER)
    known = {choice.name.lower(): choice for choice in request.embeddings}
    choices: list[EmbeddingChoice] = []
    for word, path in files.items():
        digest = sha256_file(path)
        before = known.pop(word, None)
        if before is not None and before.sha256 != digest:
            wrong = "is another file than the picture was made with"
            raise BadInput(f"embedding {path.name}", wrong, "ask without it, or bring the old file back")
        choices.append(EmbeddingChoice(name=path.stem, sha256=digest))
    if known:
        name = next(iter(known.values())).name
        raise NotFound(
            f"embedding {name}", "is not there any more", f"put {name}.safetensors into embeddings/"
        )
    words = {path.stem: path for path in files.values()}
    return request.model_copy(update={"embeddings": tuple(choices)}), words


def _chosen(ws: "Workspace", request: SampleRequest) -> SampleRequest:
    """With the choices of chance made."""
    if request.template or request.negative_template:
        return request
    sides = {"template": request.prompt, "negative_template": request.negative}
    templates = {name: text for name, text in sides.items() if has_choices(text)}
    if not templates:
        return request
    files = Wildcards(ws.home / FOLDER)
    pairs = [
        tuple(resolve(text, f"{name} {(request.seed + i) % 2**32}", files) for name, text in sides.items())
        for i in range(request.count)
    ]
    first = {"prompt": pairs[0][0], "negative": pairs[0][1]}
    return request.model_copy(
        update={**templates, **first, "resolved": tuple(pairs) if len(pairs) > 1 else ()}
    )


def _with_adapters(ws: "Workspace", request: SampleRequest, family: str) -> SampleRequest:
    """With the adapters that the prompts name, which leave the texts."""
    pairs = [request.texts(index) for index in range(max(1, len(request.resolved)))]
    taken = [take_tags(prompt) for prompt, _ in pairs]
    if any(take_tags(negative)[1] for _, negative in pairs):
        raise BadInput("negative prompt", "names an adapter", "put the <lora:...> tag into the prompt")
    tags = taken[0][1]
    if any(other != tags for _, other in taken):
        do = "ask for one picture at a time, or move the <lora:...> tag out of the choice"
        raise BadInput("prompt", "chooses another adapter for each picture", do)
    if not tags:
        return request
    weights = {choice.id: choice for choice in request.adapters}
    for tag in tags:
        adapter = find_adapter(ws, tag.name, family)
        weights[adapter.id] = _added(weights.get(adapter.id), adapter, tag)
    texts = [(plain, negative) for (plain, _), (_, negative) in zip(taken, pairs, strict=True)]
    changes = {
        "prompt": texts[0][0],
        "template": take_tags(request.template)[0],
        "resolved": tuple(texts) if request.resolved else (),
        "adapters": tuple(weights.values()),
    }
    return request.model_copy(update=changes)


def _added(before: AdapterChoice | None, adapter: Adapter, tag: AdapterTag) -> AdapterChoice:
    weight, text = tag.weight, tag.text_weight
    if before is not None:
        both = (before.text_weight, text)
        if both != (None, None):
            text = (before.weight if before.text_weight is None else before.text_weight) + (
                weight if text is None else text
            )
        weight += before.weight
    values: dict[str, Any] = {} if before is None else before.model_dump()
    values |= {"id": adapter.id, "weight": weight, "text_weight": text}
    try:
        return AdapterChoice(**values)
    except ValidationError:
        wrong = f"has weight {weight:g} with what its tags add"
        raise BadInput(f"adapter {adapter.name}", wrong, "weights go from -4 to 4") from None


def find_adapter(ws: "Workspace", name: str, family: str) -> Adapter:
    """The adapter that a tag names: by id or name, else by name as exports and A1111 write it.

    Raises:
        NotFound: there is none; says which names are near.
        BadInput: there are several.
    """
    exact = find_chosen(ws, name)  # also RUN@STEP
    if exact is not None:
        return exact
    words = " ".join(name.replace("-", " ").replace("_", " ").split())
    for query in dict.fromkeys((name, words)):
        found = ws.catalog.search_adapters(query, limit=200).adapters
        same = [adapter for adapter in found if _folded(adapter.name) == _folded(name)]
        fitting = [adapter for adapter in same if adapter.family in ("", family)] or same
        if len(fitting) > 1:
            ids = ", ".join(adapter.id for adapter in fitting[:5])
            raise BadInput(f"<lora:{name}>", f"is not unique ({ids})", "name one by its id")
        if fitting:
            return fitting[0]
    names = [
        adapter.name for adapter in ws.catalog.search_adapters(family=family, limit=_CANDIDATES).adapters
    ]
    near = difflib.get_close_matches(name, names, 3, _NEAR)
    do = f"did you mean {' or '.join(near)}" if near else "see `studio adapters list`"
    raise NotFound(f"<lora:{name}>", "no adapter has this name", do)


def _folded(name: str) -> str:
    return file_stem(name).casefold()
