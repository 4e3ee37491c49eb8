"""Figures of every subject at every strength, from drawn and training pictures; see docs/evidence.md."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from registry.errors import BadInput
from studio.evidence.copying import Closeness, closeness, line
from studio.evidence.encoders import Encoder
from studio.evidence.features import Floats, View
from studio.evidence.figures import BASE, Near, Point, Prompt, Shot
from studio.evidence.grid import Grid, grid_of
from studio.evidence.tables import Measured, Table, Training, plain_figures
from studio.evidence.views import Eyes, Units, mirrored, open_autoencoder

TIE = 1e-9
NEAREST = 6  # pairs that are shown of a point
Key = tuple[str, float]


def measure(
    shots: Sequence[Shot],
    prompts: Sequence[Prompt],
    training: Sequence[Image.Image],
    *,
    base: Path | None,
    size: tuple[int, int],
    encoder: Encoder | None = None,
    say: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure all that was drawn.

    Args:
        shots: Of every subject and strength the same prompts and seeds; those of the base alone have subject
            "" and weight 0.
        prompts: At least two of them about what was trained.
        training: The training pictures, of any size and mode.
        base: Diffusers folder whose autoencoder gives further features; None = pixels alone.
        size: (width, height) in pixels, as the base draws.
        encoder: Sees with them.
        say: Takes (pictures seen, of how many).

    Raises:
        BadInput: no training pictures, a picture of the grid is missing, too few prompts or seeds.
    """
    if not training:
        raise BadInput("evidence", "there are no training pictures", "give those that it was trained on")
    grid = grid_of(shots, prompts)
    eyes = Eyes(size, open_autoencoder(base), encoder, say, len(shots) + 2 * len(training))
    known = eyes.through(training)
    taught, flipped = eyes.see(known), eyes.see(mirrored(known))
    seen = {key: eyes.see(pictures) for key, pictures in grid.pictures.items()}
    own = seen[BASE, 0.0]
    units = [Units.of(view.rows(grid.about), there) for view, there in zip(own, taught, strict=True)]

    def in_units(views: list[View]) -> list[View]:
        return [unit.apply(view) for unit, view in zip(units, views, strict=True)]

    taught, flipped, own = in_units(taught), in_units(flipped), in_units(own)
    scaled = {key: in_units(views) for key, views in seen.items()}
    close = {
        key: closeness(
            [view.layout[grid.about] for view in views],
            [view.layout for view in taught],
            [view.layout for view in flipped],
        )
        for key, views in scaled.items()
    }
    limit = line(close[BASE, 0.0].nearest[0])
    answers = _answers(grid, prompts, seen, encoder)
    tables = {
        key: _table(grid, views, own, close[key], limit, answers.get(key)) for key, views in scaled.items()
    }
    measured = Measured(
        (),
        tables,
        _training(taught),
        tuple(view.name for view in own),
        (len(grid.about_prompts), len(grid.prior_prompts)),
        len(grid.seeds),
    )
    points = tuple(
        Point(
            subject=key[0],
            weight=key[1],
            figures=plain_figures(measured, key),
            pictures=len(grid.pictures[key]),
            nearest=_nearest(grid, close[key]),
        )
        for key in grid.pictures
    )
    return measured.with_points(points)


def _training(views: list[View]) -> Training:
    count = len(views[0].look)
    noise = [float(v.look.var(0, ddof=1).sum()) / count if count > 1 else 0.0 for v in views]
    return Training(
        tuple(view.look.mean(0) for view in views),
        tuple(noise),
        tuple(_mean_variety(view) for view in views),
        count,
    )


def _mean_variety(view: View) -> float:
    """Distance between the scenes of two training pictures, on average; 0 when there is only one."""
    count = len(view.look)
    return float(_variety(view, 1)[0][np.triu_indices(count, 1)].mean()) if count > 1 else 0.0


def _table(
    grid: Grid, views: list[View], own: list[View], close: Closeness, limit: float, said: Floats | None
) -> Table:
    share, which = close.nearest
    about, prior, seeds = len(grid.about_prompts), len(grid.prior_prompts), len(grid.seeds)
    layouts = [view.layout for view in views]
    theirs = [view.layout for view in own]
    return Table(
        look=tuple(view.look[grid.about].reshape(about, seeds, -1) for view in views),
        right=_right(views, own, grid),
        unlike=tuple(_variety(view.rows(grid.about), about) for view in views),
        moved=tuple(
            np.sqrt(((a[grid.prior] - b[grid.prior]) ** 2).mean((1, 2))).reshape(prior, seeds)
            for a, b in zip(layouts, theirs, strict=True)
        ),
        spread=tuple(_spread(a[grid.prior], prior) for a in layouts),
        said=said,
        copied=(share < limit).astype(np.float64).reshape(about, seeds),
        which=which.reshape(about, seeds),
    )


def _right(views: list[View], own: list[View], grid: Grid) -> Floats:
    """(P, P, S) 1 where the picture of p is more like the base's of p than like the base's of q.

    Like is the mean cosine of all descriptions of the scene, each without its mean over the prompts of a
    seed, so that a change that all pictures share, the style, does not count. Ties, as of pictures that are
    all the same, count a half.
    """
    count = len(grid.about_prompts)
    like = np.mean([_cosines(a, b, grid.about, count) for a, b in zip(views, own, strict=True)], axis=0)
    same = np.einsum("pps->ps", like)[:, None]
    return (same > like + TIE) + 0.5 * (np.abs(same - like) <= TIE)


def _cosines(view: View, own: View, rows: list[int], prompts: int) -> Floats:
    """(P, P, S) mean over the descriptions of a scene."""
    found: list[Floats] = []
    for one, base in zip(view.scene, own.scene, strict=True):
        ours, theirs = (
            _contrasts(part[rows].reshape(prompts, len(rows) // prompts, -1)) for part in (one, base)
        )
        found.append(np.einsum("psk,qsk->pqs", ours, theirs))
    return np.mean(found, axis=0)


def _contrasts(values: Floats) -> Floats:
    """(P, S, K) without the mean over the prompts, of length 1; what does not differ stays 0."""
    rest = values - values.mean(0, keepdims=True)
    return rest / np.maximum(np.linalg.norm(rest, axis=-1, keepdims=True), TIE)


def _variety(view: View, prompts: int) -> Floats:
    """(P, S, S) distance between the scenes of two seeds; every description counts the same."""
    return np.sqrt(np.mean([_spread(part, prompts) ** 2 for part in view.scene], axis=0))


def _spread(values: Floats, prompts: int) -> Floats:
    """(P, S, S) root mean square of the difference between the pictures of two seeds."""
    if not prompts:
        return np.zeros((0, 1, 1))
    rows = values.reshape(prompts, len(values) // prompts, -1)
    return np.stack([_distances(row) for row in rows])


def _distances(rows: Floats) -> Floats:
    return np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(2))


def _answers(
    grid: Grid, prompts: Sequence[Prompt], seen: dict[Key, list[View]], encoder: Encoder | None
) -> dict[Key, Floats]:
    """Of each point (A, S): cosine of picture and own prompt less the mean of those with the others."""
    texts = encoder.texts([prompts[place].text for place in grid.about_prompts]) if encoder else None
    if texts is None:
        return {}
    out: dict[Key, Floats] = {}
    count = len(grid.about_prompts)
    for key, views in seen.items():
        like = (views[-1].look[grid.about] @ np.asarray(texts, np.float64).T).reshape(count, -1, count)
        own = np.einsum("psp->ps", like)
        out[key] = own - (like.sum(2) - own) / (count - 1)
    return out


def _nearest(grid: Grid, close: Closeness) -> tuple[Near, ...]:
    share, which = close.nearest
    found: list[Near] = []
    for row in np.argsort(share, kind="stable")[:NEAREST].tolist():
        prompt, seed = divmod(row, len(grid.seeds))
        training = int(which[row])
        similarity = float(np.clip(close.similarity[row, training], -1, 1))
        found.append(
            Near(
                prompt=grid.about_prompts[prompt],
                seed=grid.seeds[seed],
                training=training,
                similarity=round(similarity, 4),
            )
        )
    return tuple(found)
