"""More words that an adapter is found by: those of its captions and of the prompts it was drawn with."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from registry.records import Run, Sample

if TYPE_CHECKING:
    from studio.workspace import Workspace

CAPTION_WORDS = 64  # the most frequent ones of all captions
PROMPT_WORDS = 32  # of previews
LONGEST = 40  # characters of a word
_READ = 20_000  # characters of one text that are looked at
_WORD = re.compile(r"[^\W_][\w'-]*")
_TAG = re.compile(r"<[^<>]{0,200}>")  # <lora:name:1>
_COMMON = {
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "her", "his", "in",
    "into", "is", "it", "its", "near", "no", "not", "of", "on", "or", "over", "she", "he", "that", "the",
    "their", "there", "these", "they", "this", "to", "under", "up", "very", "was", "with",
}  # fmt: skip


def words_of(texts: Iterable[str], most: int) -> list[str]:
    """The most frequent words of texts, case folded, small words and numbers left out; ties in order."""
    counted = Counter(
        word
        for text in texts
        for word in _WORD.findall(unicodedata.normalize("NFKC", _TAG.sub(" ", text[:_READ])).casefold())
        if 1 < len(word) <= LONGEST and word not in _COMMON and not word.isdecimal()
    )
    return [word for word, _ in counted.most_common(most)]


def keywords_of_run(run: Run, captions: Iterable[str]) -> str:
    """Words of the captions and of the preview prompts, each once."""
    preview: Any = run.recipe.get("preview") or {}
    prompts = [str(prompt) for prompt in preview.get("prompts") or ()]
    words = [*words_of(captions, CAPTION_WORDS), *words_of(prompts, PROMPT_WORDS)]
    return " ".join(dict.fromkeys(words))


def add_prompt(ws: "Workspace", sample: Sample) -> None:
    """The words of a sample's prompt for each adapter that had a part in it."""
    words = words_of([str(sample.request.get("prompt", ""))], PROMPT_WORDS)
    used = [use.adapter_id for use in sample.adapters if use.weight or use.text_weight]
    if words and used:
        ws.catalog.lineage.add_keywords(used, words)
