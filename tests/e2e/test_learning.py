"""The pocket base learns a style, a character and a concept; those of other families learn the style too.

A part of the shipped recipes' steps: enough to see it, in a few minutes. `benchmarks/learning.py` and
`benchmarks/style_closed.py` go all the way.
"""

from pathlib import Path

import pytest

from registry.records import Base
from studio.workspace import Workspace
from tests.support.learning import KINDS, demo_dataset, drift, learn, likeness

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

OTHER_FAMILIES = ("pocket-xl", "pocket-sd35")


def short(steps: int) -> list[str]:
    """A run of so many steps, with one checkpoint at its end."""
    return [f"train.max_steps={steps}", f"checkpoints.every={steps}", "checkpoints.keep_best=false"]


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_learned(ws: Workspace, kind: str):
    dataset = demo_dataset(ws, kind)
    figures = likeness(ws, dataset, learn(ws, dataset, kind, *short(80)), kind)
    print(f"{kind}: {figures.closed:.0%} of the distance closed")
    assert figures.adapter.total < figures.base.total
    assert figures.closed > 0.4


@pytest.mark.parametrize("base", OTHER_FAMILIES)
def test_every_family_learns_a_style(ws: Workspace, base: str):
    dataset = demo_dataset(ws, "style")
    adapter = learn(ws, dataset, "style", *short(80), base=base)
    figures = likeness(ws, dataset, adapter, "style", base_name=base)
    print(f"{base}: {figures.closed:.0%} of the distance closed")
    assert adapter.family == ws.catalog.get(Base, base).family
    assert figures.closed >= 0.5


def test_preservation_keeps_other_prompts_closer_to_the_base(ws: Workspace):
    dataset = demo_dataset(ws, "character", pictures=12)
    ways = ("preservation.mode=none", "preservation.mode=base_prediction")
    without, kept = drift(ws, *(learn(ws, dataset, "character", *short(80), way) for way in ways))
    print(f"other prompts drift by {without:.3f} without preservation, {kept:.3f} with it")
    assert kept < 0.95 * without
