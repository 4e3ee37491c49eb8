"""The pocket base learns a style, a character and a concept; those of other families learn the style too.

A part of the shipped recipes' steps: enough to see it, in a few minutes. `benchmarks/learning.py` and
`benchmarks/style_closed.py` go all the way.
"""

from collections.abc import Callable
from functools import cache, partial

import pytest

from registry.records import Adapter, Base, Dataset
from studio.workspace import POCKET, Workspace
from tests.support.learning import KINDS, demo_dataset, drift, learn, likeness

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

OTHER_FAMILIES = ("pocket-xl", "pocket-sd35", "pocket-flux")
STEPS = {"concept": 80}  # a word for a thing: the base has learned to pass over words it does not know
QUICKLY = {"steps": 8, "seeds": 1}


@pytest.fixture(scope="module")
def ws(tmp_path_factory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def dataset(ws: Workspace) -> Callable[[str], Dataset]:
    """The demo's data set of a kind."""
    return cache(partial(demo_dataset, ws))


@pytest.fixture(scope="module")
def learned(ws: Workspace, dataset: Callable[[str], Dataset]) -> Callable[..., Adapter]:
    """An adapter of 40 steps or of `STEPS`, each trained once."""

    @cache
    def train(kind: str, *sets: str, base: str = POCKET) -> Adapter:
        steps = STEPS.get(kind, 40)
        short = f"train.max_steps={steps}", f"checkpoints.every={steps}", "checkpoints.keep_best=false"
        return learn(ws, dataset(kind), kind, *short, *sets, base=base)

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_learned(ws, dataset, learned, kind):
    figures = likeness(ws, dataset(kind), learned(kind), kind, **QUICKLY)
    print(f"{kind}: {figures.closed:.0%} of the distance closed")
    assert figures.adapter.total < figures.base.total
    assert figures.closed > 0.4


@pytest.mark.parametrize("base", OTHER_FAMILIES)
def test_every_family_learns_a_style(ws, dataset, learned, base):
    adapter = learned("style", base=base)
    figures = likeness(ws, dataset("style"), adapter, "style", base_name=base, **QUICKLY)
    print(f"{base}: {figures.closed:.0%} of the distance closed")
    assert adapter.family == ws.catalog.get(Base, base).family
    assert figures.closed >= 0.5


def test_preservation_keeps_other_prompts_closer_to_the_base(ws, learned):
    kept = learned("character", "preservation.mode=base_prediction")
    without, with_it = drift(ws, learned("character"), kept, **QUICKLY)
    print(f"other prompts drift by {without:.3f} without preservation, {with_it:.3f} with it")
    assert with_it < 0.95 * without
