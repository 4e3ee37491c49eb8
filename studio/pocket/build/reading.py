"""Text encoders learn to read on captions alone, before any picture: thousands of captions cost seconds.

Throw-away heads ask every token, and the vector for the whole, what the scene is: shape, the two colours,
number, size, place, texture. Which of two colours is the ground's follows from the order of words alone, and
a denoiser teaches that slowly. Tokens also have to say which word they are, some of them hidden (Devlin et
al. 2019), so that words without a meaning here stay there to be learned. Stray words stand beside some
captions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pocket.build.networks import Network
from studio.pocket.build.replay import Inputs
from studio.pocket.grammar import (
    COLOURS,
    COUNT_WORDS,
    POSITIONS,
    SIZES,
    TEXTURES,
    Scene,
    sample_scene,
    varied_caption,
)
from studio.pocket.shapes import SHAPES
from studio.pocket.stray import with_stray

QUESTIONS: dict[str, tuple[object, ...]] = {  # attributes of a scene and their answers
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(COLOURS),
    "count": tuple(COUNT_WORDS),
    "size": SIZES,
    "position": ("", *POSITIONS),
    "texture": ("", *TEXTURES),
}
CAPTIONS, ASKED = 20_000, 512  # different ones that are learned from, and that judge
HIDDEN_SHARE = 0.2  # of the words in half of a batch
WORD_WEIGHT = 0.5  # of the loss by words beside the one by scenes


@dataclass(frozen=True)
class Book:
    """Captions with what they say.

    Args:
        ids: By text encoder, as in `Texts`: (N, L) int16.
        answers: (N, 7) int64, places in `QUESTIONS`.
    """

    ids: dict[str, Tensor]
    answers: Tensor


def make_book(read: Callable[[list[str]], dict[str, Tensor]], count: int, *, held_out: bool = False) -> Book:
    """Scenes drawn by chance and their captions, some with stray words.

    Args:
        read: Captions -> ids by text encoder.
        count: N.
        held_out: Of the combinations that training never shows.
    """
    rng = random.Random(f"book-{held_out}")
    scenes = [sample_scene(rng, held_out=held_out) for _ in range(count)]
    ids = read([with_stray(varied_caption(scene, rng), rng) for scene in scenes])
    answers = torch.tensor([_answers(scene) for scene in scenes])
    return Book(ids, answers.to(next(iter(ids.values())).device))


class Readers(nn.Module):
    """Heads on tokens (B, L, D) and on the vector for the whole (B, P).

    Args:
        width: D.
        pooled: P.
        words: Tokens of the vocabulary.
    """

    def __init__(self, width: int, pooled: int, words: int) -> None:
        super().__init__()
        answers = sum(map(len, QUESTIONS.values()))
        self.scene, self.whole = nn.Linear(width, answers), nn.Linear(pooled, answers)
        self.words = nn.Linear(width, words)

    def loss(self, hidden: Tensor, pooled: Tensor, inputs: Inputs) -> Tensor:
        """Cross-entropies of scene and words; rows with hidden words are not asked for the scene.

        Args:
            hidden: Tokens of a batch whose second half has words hidden.
            pooled: Vectors for the whole, nothing hidden.
            inputs: With "answers" (B, 7), "words" (B, L) and "spoken" (B, L), which are no padding.
        """
        half = len(hidden) // 2
        tokens = self.scene(hidden[:half]).flatten(0, 1)
        asked = inputs["answers"][:half].repeat_interleave(hidden.shape[1], 0)
        said = F.cross_entropy(self.words(hidden).transpose(1, 2), inputs["words"], reduction="none")
        spoken = inputs["spoken"].float()
        words = (said * spoken).sum() / spoken.sum()
        scenes = scene_loss(tokens, asked) + scene_loss(self.whole(pooled), inputs["answers"])
        return scenes + WORD_WEIGHT * words

    @torch.no_grad()
    def right(self, hidden: Tensor, pooled: Tensor, answers: Tensor) -> dict[str, dict[str, float]]:
        """Share of captions read rightly, by "tokens" (their mean) and by "pooled", for each question."""
        found = {"tokens": self.scene(hidden).mean(1), "pooled": self.whole(pooled)}
        return {name: _right(logits.float(), answers) for name, logits in found.items()}


def draw_reading(book: Book, batch: int, generator: torch.Generator) -> Inputs:
    """What a step reads: captions, answers, and which words to hide (1 = hidden), in the second half."""
    device = book.answers.device
    picks = torch.randint(len(book.answers), (batch,), generator=generator, device=device)
    inputs = {name: table[picks].long() for name, table in book.ids.items()}
    last = list(inputs)[-1]
    chance = torch.rand(inputs[last].shape, generator=generator, device=device)
    second = torch.arange(batch, device=device)[:, None] >= batch // 2
    return {**inputs, "answers": book.answers[picks], "hidden": (chance < HIDDEN_SHARE) & second}


def scene_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean of the questions' cross-entropies; (N, all answers) against (N, 7)."""
    parts = logits.float().split([len(some) for some in QUESTIONS.values()], dim=-1)
    losses = [F.cross_entropy(part, answers[:, place]) for place, part in enumerate(parts)]
    return torch.stack(losses).mean()


def in_words(right: dict[str, dict[str, float]]) -> str:
    """One line: what is read rightly from the tokens and from the vector."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{question} {share:.1%}" for question, share in shares.items())
        for name, shares in right.items()
    )


def make_readers(tokens: Network, whole: Network) -> Readers:
    """Heads that fit a T5 and a CLIP."""
    return Readers(tokens.config.d_model, whole.config.hidden_size, tokens.config.vocab_size)


def _answers(scene: Scene) -> list[int]:
    return [answers.index(getattr(scene, question)) for question, answers in QUESTIONS.items()]


def _right(logits: Tensor, answers: Tensor) -> dict[str, float]:
    parts = logits.split([len(some) for some in QUESTIONS.values()], dim=-1)
    table = torch.stack([part.argmax(-1) for part in parts], dim=-1) == answers
    shares = {question: float(table[:, place].float().mean()) for place, question in enumerate(QUESTIONS)}
    return {**shares, "all": float(table.all(1).float().mean())}
