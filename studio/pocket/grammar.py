"""What the pocket base knows: scenes of shapes, and how people would describe them.

One combination of shape, colour and background in ten is never shown in training, so that fidelity is
measured on pictures that the base has to compose.
"""

import random
import zlib
from dataclasses import dataclass

from studio.pocket.shapes import SHAPES

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 80, 210),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "gray": (135, 135, 135),
}
COUNT_WORDS = {1: "a", 2: "two", 3: "three"}
SIZES = ("", "small", "large")
TEXTURES = ("striped", "dotted", "outlined")
POSITIONS: dict[str, tuple[int, int]] = {  # direction from the centre, y down
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "on the left": (-1, 0),
    "on the right": (1, 0),
}
# Words that mean nothing here: prompts will contain such.
FILLERS = (
    *("photo", "picture", "drawing", "image", "art", "scene", "style", "quality", "thing", "sks"),
    *("nice", "simple", "beautiful", "best", "little", "made", "of", "in", "by"),
)
HELD_OUT_SHARE = 10  # one combination in so many


@dataclass(frozen=True)
class Scene:
    """One picture of the grammar: `count` equal shapes on a plain background."""

    shape: str
    colour: str
    background: str
    count: int = 1
    size: str = ""
    position: str = ""
    texture: str = ""

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from the base's training."""
        return zlib.crc32(f"{self.shape}|{self.colour}|{self.background}".encode()) % HELD_OUT_SHARE == 0


def sample_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """A scene drawn by chance, from the training combinations or from the held-out ones."""
    while True:
        shape, colour, background = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
        if colour != background and Scene(shape, colour, background).held_out == held_out:
            break
    count = rng.choices((1, 2, 3), (0.6, 0.22, 0.18))[0]
    size = position = texture = ""
    if count == 1:
        size = rng.choices(SIZES, (0.5, 0.25, 0.25))[0]
        if size != "large" and rng.random() < 0.25:
            position = rng.choice(list(POSITIONS))
    if rng.random() < 0.2:
        texture = rng.choice(TEXTURES)
        too_thin = shape in {"ring", "cross"} if texture == "outlined" else size == "small"
        texture = "" if too_thin else texture
    return Scene(shape, colour, background, count, size, position, texture)


def evaluation_scenes(count: int = 64, seed: int = 777) -> list[Scene]:
    """Held-out scenes without texture: those that the checker can judge."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=True)
        if not scene.texture:
            scenes.append(scene)
    return scenes


def subject(scene: Scene) -> str:
    """What is in the picture, without the background: "two small striped red circles at the top"."""
    noun = scene.shape if scene.count == 1 else scene.shape + ("es" if scene.shape == "cross" else "s")
    words = " ".join(w for w in (scene.size, scene.texture, scene.colour, noun, scene.position) if w)
    number = _article(words) if scene.count == 1 else COUNT_WORDS[scene.count]
    return f"{number} {words}"


def caption(scene: Scene) -> str:
    """The plain caption: "a red circle on a white background"."""
    return f"{subject(scene)} on {_article(scene.background)} {scene.background} background"


def varied_caption(scene: Scene, rng: random.Random) -> str:
    """The plain caption six times in ten, else one of the ways in which people write prompts."""
    if rng.random() < 0.6:
        return caption(scene)
    what, ground = subject(scene), scene.background
    bare = what.partition(" ")[2] if scene.count == 1 else what
    article = _article(ground)
    text = rng.choice(
        (
            f"{bare}, {ground} background",
            f"{what} on {ground}",
            f"a picture of {what} on {article} {ground} background",
            f"{article} {ground} background with {what}",
        )
    )
    if rng.random() < 0.35:
        fillers = " ".join(rng.sample(FILLERS, rng.randint(1, 3)))
        text = f"{text}, {fillers}" if rng.random() < 0.5 else f"{fillers} {text}"
    return text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
