"""Which pictures a run never trains on, so that its checkpoints can be judged by them. Torch-free.

The choice is a function of the pictures and their captions, not of train.seed: runs on the same data set hold
out the same pictures, so that their figures compare, and a branch does not train on what it is judged by.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from registry.errors import BadInput, several
from trainers.plan import Item, draw
from trainers.priors import word_pattern
from trainers.recipe import Recipe
from trainers.rundir import ManifestItem

ENOUGH = 40  # different pictures from which on some are held out unasked
SHARE = 10  # one in so many
MOST = 8


def held_out(recipe: Recipe, pictures: Mapping[str, str]) -> frozenset[str]:
    """Those of the pictures that are held out; none where checkpoints are not judged.

    Args:
        recipe: `checkpoints.held_out` says how many.
        pictures: Hash of the pixels -> caption, of all that teach.

    Raises:
        BadInput: asked for more than half of them.
    """
    wanted, count = recipe.checkpoints.held_out, len(pictures)
    if not recipe.checkpoints.keep_best:
        return frozenset()
    if wanted is None:
        wanted = min(count // SHARE, MOST) if count >= ENOUGH else 0
    if wanted > count // 2:
        wrong = f"is {wanted} of {several(count, 'different picture')}, more than half"
        raise BadInput("checkpoints.held_out", wrong, f"set it to {count // 2} or less, or add pictures")
    return _chosen(pictures, wanted, recipe.tokens.words)


def split(recipe: Recipe, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The items that are trained on, and those that are held out, at all their sizes.

    Raises:
        BadInput: see `held_out`.
    """
    spared = held_out(recipe, teaching(item.source for item in items))
    away = [item.source.pixel_hash in spared for item in items]
    trained = [item for item, out in zip(items, away, strict=True) if not out]
    return trained, [item for item, out in zip(items, away, strict=True) if out]


def teaching(sources: Iterable[ManifestItem]) -> dict[str, str]:
    """Hash of the pixels -> caption of the pictures that teach and are not among those that keep."""
    sources = list(sources)
    kept = {source.pixel_hash for source in sources if source.role}
    return {
        source.pixel_hash: source.caption for source in reversed(sources) if source.pixel_hash not in kept
    }


def _chosen(pictures: Mapping[str, str], wanted: int, words: Sequence[str]) -> frozenset[str]:
    """At most `wanted`, by lot; never the last picture of what only a few show."""
    groups = {picture: _groups(caption, words) for picture, caption in pictures.items()}
    if _mostly_own(pictures.values()):
        groups = {picture: names - {pictures[picture]} for picture, names in groups.items()}
    left = Counter(name for names in groups.values() for name in names)
    chosen: list[str] = []
    for picture in sorted(pictures, key=lambda picture: draw(0, "held out", picture)):
        if len(chosen) < wanted and all(left[name] > 1 for name in groups[picture]):
            chosen.append(picture)
            left.subtract(groups[picture])
    return frozenset(chosen)


def _groups(caption: str, words: Sequence[str]) -> set[str]:
    """What a picture has in common with others: its caption, and the new words that it teaches."""
    return {caption, *(f"\0{word}" for word in words if word_pattern(word).search(caption))}


def _mostly_own(captions: Iterable[str]) -> bool:
    """Whether most pictures have a caption to themselves: then captions say nothing about groups."""
    counts = Counter(captions)
    return 2 * sum(count == 1 for count in counts.values()) > counts.total()
