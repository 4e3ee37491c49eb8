"""Words that mean nothing to a pocket base. It is shown some beside captions, so that they change nothing."""

import random
import string

EVERYDAY = """
    and for from by as is it this that my your our his her its their four five six seven eight nine
    ten painting sketch portrait person man woman boy girl child face hand eye cat dog bird fish
    horse bear fox rabbit cow car boat house tree flower leaf mountain river lake sea beach sky
    cloud sun moon night day city street road bridge forest garden field snow rain fire water stone
    wood metal glass paper ink pencil watercolor oil pastel crayon charcoal comic cartoon pixel
    retro vintage modern minimal abstract flat outline hatched crosshatch line dot stripe pattern
    texture soft bright dark light big tiny huge tall short long wide round sharp smooth rough old
    new young happy sad cute good high low center middle behind front under over near wearing
    holding standing sitting running flying toy robot monster dragon castle ship plane train bottle
    cup chair table book shoe hat bag clock lamp logo icon badge mascot creature object foreground
    detailed realistic fantasy magic space planet food fruit apple banana lemon cake bread cheese
    gold silver brown teal cyan magenta beige cream violet
""".split()  # noqa: SIM905  a list of 150 strings reads worse
STRAY_SHARE = 0.3  # of captions that have such a word beside them


def with_stray(text: str, rng: random.Random) -> str:
    """Some texts get an everyday word or a made-up one before or behind them."""
    if rng.random() >= STRAY_SHARE:
        return text
    word = rng.choice((rng.choice(EVERYDAY), made_up(rng)))
    return rng.choice((f"{word} {text}", f"{text}, {word}", f"{text} {word}"))


def made_up(rng: random.Random) -> str:
    """A word of four to eight letters drawn by chance, as triggers are."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 8)))
