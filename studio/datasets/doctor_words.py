"""The doctor's checks of words: what does not fit, what the base knows already, what cannot be right."""

import re
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from itertools import pairwise

from registry.errors import several
from registry.records import Image
from studio.datasets.colours import said_but_absent
from studio.datasets.doctor_pixels import copy_groups
from studio.datasets.findings import Finding, Patient, Severity, ids, names
from studio.datasets.listing import some
from studio.datasets.seen import seen_captions
from studio.datasets.tokens import USUAL

LONG = 75  # words; CLIP reads 75 tokens, and a word has at least one
ENOUGH = 15  # captions from which a word in all of them says something
EQUAL = 4  # pictures with the same caption that are worth a word
TYPO = 0.75  # likeness of a word to the trigger
DISTINCT = 0.2  # share of the words that two captions of one picture have in common
_WORD = re.compile(r"[^\W\d_][\w'-]*")
COMMON = frozenset(
    _WORD.findall(
        """an art at background black blue by cat city dog drawing face for from girl green hair house
        illustration image in is it landscape light man night of old on painting person photo picture portrait
        red robot sketch style that the tree water white with woman yellow young"""
    )
)
SMALL = frozenset(
    _WORD.findall(
        """a an and are as at be by for from has have her his in into is it its of on or over that the their
        there this to two under up was which while who with"""
    )
)
_LEFT_OVER = re.compile(
    r"<[a-z/][^>]*>|https?://|\b(?:lorem ipsum|todo|untitled|placeholder|caption here|no caption|null|nan)\b"
    r"|\bas an ai\b|\bi(?:'m| am) (?:sorry|unable)\b|\bi can(?:'t|not)\b"
    r"|^(?:img|dsc[nf]?|pxl|screenshot)[ _-]?\d+"
    r"|\ufffd|â€|Ã[\x80-\xbf©¤¶¼]",
    re.IGNORECASE,
)


def overflow(patient: Patient) -> Finding | None:
    """Captions whose end the text encoder does not see; counted by the base's tokenizer when it is known."""
    reader = patient.longest
    long: dict[str, int] = {}
    for image in patient.images:
        texts = _seen(patient, image)
        if reader is None:
            most = max(len(text.split()) for text in texts)
            over = most > LONG
        else:
            likely = [text for text in texts if len(text) >= reader.limit - 2]  # no token is without a letter
            most = max((reader.count(text) for text in likely), default=0)
            over = most > reader.limit
        if over:
            long[image.id] = most
    if not long:
        return None
    images = [image for image in patient.images if image.id in long]
    count = several(len(long), "caption has", "captions have")
    if reader is None:
        message = f"{count} over {LONG} words, whose end is not seen: {names(images)}."
    else:
        shown = some([f"{image.name} ({long[image.id]})" for image in images])
        message = (
            f"{count} more than the {reader.limit} tokens that the base reads; the end is not seen: {shown}."
        )
    return Finding("warn", "long-captions", message, ids(images), "Shorten them, the important words first.")


def trigger_known(patient: Patient) -> Finding | None:
    """A trigger word that means something to the base already pulls that in."""
    words = patient.trigger.split()
    if patient.base is None or not words:
        return None
    if not patient.readers:
        if len(words) > 1 or words[0].lower() not in COMMON:
            return None
        message = f"The trigger word {patient.trigger!r} is a usual word, which the base knows."
        return Finding("warn", "trigger-known", message, (), "Use a made-up word.")
    rarest = [patient.readers[0].whole_word(word) for word in words]
    if any(rare is None for rare in rarest):
        return None
    usual = all(rare is not None and rare < USUAL for rare in rarest)
    one = "is one token" if len(words) == 1 else "has nothing but whole words"
    kind = "a usual word" if usual else "rare, but known"
    message = (
        f"The trigger word {patient.trigger!r} {one} of the base's vocabulary: {kind}, so it means something."
    )
    severity: Severity = "warn" if usual else "info"
    return Finding(
        severity, "trigger-known", message, (), "Use a made-up word, unless you want that meaning."
    )


def trigger_misspelt(patient: Patient) -> Finding | None:
    """Captions with a word that is nearly the trigger: it is learned as another one."""
    trigger = patient.trigger.lower()
    if len(trigger) < 4 or " " in trigger:
        return None
    odd = {image.id: word for image in patient.images if (word := misspelt(image.caption, trigger))}
    if not odd:
        return None
    images = [image for image in patient.images if image.id in odd]
    count = several(len(odd), "caption writes", "captions write")
    shown = some([f"{image.name} ({odd[image.id]!r})" for image in images])
    message = f"{count} the trigger word {patient.trigger!r} another way: {shown}."
    return Finding("warn", "trigger-misspelt", message, ids(images), "Write it alike everywhere.")


def left_over(patient: Patient) -> Finding | None:
    """Captions that no person meant: HTML, addresses, apologies of a captioner, broken letters."""
    odd = [image for image in patient.images if _LEFT_OVER.search(image.caption.strip())]
    if not odd:
        return None
    count = several(len(odd), "caption is", "captions are")
    message = f"{count} no description, such as {odd[0].caption.strip()[:60]!r}: {names(odd)}."
    return Finding("warn", "left-over-captions", message, ids(odd), "Write what is in each picture.")


def same_captions(patient: Patient) -> Finding | None:
    """One caption for many pictures: what differs between them is learned under the same words."""
    by_text: defaultdict[str, list[Image]] = defaultdict(list)
    for image in patient.images:
        if image.caption.strip():
            by_text[" ".join(image.caption.lower().split())].append(image)
    many = {text: images for text, images in by_text.items() if len(images) >= EQUAL}
    sharing = {image.id for group in many.values() for image in group}
    images = [image for image in patient.images if image.id in sharing]
    if not images:
        return None
    most = max(many.values(), key=len)
    count = several(len(images), "picture shares its caption", "pictures share their caption")
    message = (
        f"{count} with others; {len(most)} are all called {most[0].caption.strip()[:60]!r}: {names(images)}."
    )
    severity: Severity = "warn" if 2 * len(images) > len(patient.images) else "info"
    return Finding(severity, "same-captions", message, ids(images), "Say what is different in each.")


def always_there(patient: Patient) -> Finding | None:
    """Words in every caption besides the trigger: they become a part of it."""
    texts = [image.caption for image in patient.images if image.caption.strip()]
    if len(texts) < ENOUGH:
        return None
    counts = Counter(word for text in texts for word in words_of(text))
    own = words_of(patient.trigger) | SMALL
    if patient.recipe is not None:
        own |= words_of(patient.recipe.data.class_word)
    always = [word for word, count in counts.most_common(20) if count == len(texts) and word not in own]
    if not always:
        return None
    listed = ", ".join(repr(word) for word in sorted(always)[:5])
    message = (
        f"Every caption says {listed}: what is learned will need {'it' if len(always) == 1 else 'them'}, too."
    )
    fix = "Leave out what all pictures have in common, if the trigger word alone should call it."
    return Finding("info", "same-words", message, (), fix)


def wrong_colours(patient: Patient) -> Finding | None:
    """Captions that name a colour which the picture does not have."""
    if patient.seen is None:
        return None
    wrong: dict[str, str] = {}
    for image in patient.images:
        colours = patient.seen.colours.get(image.pixel_hash)
        if colours is not None and (said := said_but_absent(image.caption, colours)):
            wrong[image.id] = said
    if not wrong:
        return None
    images = [image for image in patient.images if image.id in wrong]
    count = several(len(images), "caption names", "captions name")
    shown = some([f"{image.name} ({wrong[image.id]})" for image in images])
    message = f"{count} a colour that hardly any of the picture has: {shown}."
    return Finding("info", "colour-captions", message, ids(images), "Look whether the caption is another's.")


def told_apart(patient: Patient) -> Finding | None:
    """Copies of one picture whose captions have next to nothing in common: one is likely another's."""
    by_hash = {image.pixel_hash: image for image in patient.images}
    odd: dict[str, Image] = {}
    for group in copy_groups(patient):
        images = [by_hash[name] for name in group if by_hash[name].caption.strip()]
        for one, other in pairwise(images):
            mine, theirs = (words_of(i.caption) - SMALL - words_of(patient.trigger) for i in (one, other))
            if mine and theirs and len(mine & theirs) < DISTINCT * len(mine | theirs):
                odd |= {one.id: one, other.id: other}
    if not odd:
        return None
    images = [image for image in patient.images if image.id in odd]
    message = f"Copies of one picture are told in quite different words: {names(images)}."
    return Finding("info", "told-apart", message, ids(images), "Look which of the captions is right.")


def misspelt(caption: str, trigger: str) -> str:
    """A word of the caption that is nearly the trigger, where the trigger itself is missing; else ""."""
    words = {word.lower(): word for word in _WORD.findall(caption)}
    if trigger in words or trigger in caption.lower() or "[trigger]" in caption:
        return ""
    for low, word in words.items():
        near = abs(len(low) - len(trigger)) <= 2 and low not in SMALL
        if near and SequenceMatcher(None, low, trigger).ratio() >= TYPO and low[0] == trigger[0]:
            return word
    return ""


def words_of(text: str) -> set[str]:
    """Its words in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def _seen(patient: Patient, image: Image) -> tuple[str, ...]:
    recipe = patient.recipe
    data, seed = (recipe.data, recipe.train.seed) if recipe is not None else (None, 0)
    return seen_captions(patient.dataset, image, data, seed)


CHECKS = (
    overflow,
    trigger_known,
    trigger_misspelt,
    left_over,
    same_captions,
    always_there,
    wrong_colours,
    told_apart,
)
