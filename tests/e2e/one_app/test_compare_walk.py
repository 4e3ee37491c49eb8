"""Compare in a real browser: a grid of nine, the slider, ten blind votes, a checkpoint kept, the evidence."""

import contextlib
import re
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser, Page, expect

from registry.records import (
    Adapter,
    Base,
    Comparison,
    Evaluation,
    Job,
    JobKind,
    JobState,
    Run,
    RunState,
    Vote,
)
from studio.compare.grids import spec_of
from studio.datasets.ingest import create_dataset
from studio.evidence import evaluations
from studio.evidence.plan import Wishes
from studio.pocket.pictures import demo_set
from studio.runs.launch import launch
from studio.workspace import Workspace
from tests.support.browser import only, page_at, rest, write
from tests.support.pictures import encoded
from tests.support.sampling import add_adapter
from tests.support.supervision import until
from trainers.recipe import apply_sets, preset_by_name

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = ("third", "fourth")
VOTES = 10
SETS = ("train.max_steps=4", "checkpoints.every=2", "preview.every=0")

# The worker's turn: looked for in the catalog, as a browser that is asked all the while works all the while.
worked = partial(until, seconds=180.0, every=0.5)


@pytest.fixture(scope="module", autouse=True)
def _adapters(workspace: Workspace) -> None:
    for seed, name in enumerate(NAMES, 10):  # weights that no other file of this app has: those would be one
        add_adapter(workspace, name, seed=seed)


@pytest.fixture(scope="module")
def page(address: str, chromium: Browser) -> Iterator[Page]:
    with page_at(f"{address}/compare?new=1", height=1000, within=chromium) as page:
        yield page


def test_comparing(workspace: Workspace, address: str, page: Page):
    comparison = a_grid_of_nine(workspace, page)
    the_slider(page)
    ten_votes(workspace, page, comparison)
    run = trained(workspace)
    keep_this_one(workspace, address, page, run)
    the_evidence(workspace, address, page, run)


def a_grid_of_nine(workspace: Workspace, page: Page) -> Comparison:
    """None and two adapters, three seeds."""
    for name in NAMES:
        choose(page, "Add an adapter", name)
        expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()  # then the list is another
    prompts = page.get_by_role("textbox", name="What to draw: a prompt in each line")
    write(prompts, "a red circle")
    choose(page, "Seeds", "3")
    page.keyboard.press("Escape")  # the list stays open for more
    ten_steps(page)
    expect(page.get_by_text("9 cells")).to_be_visible()
    before = workspace.catalog.count(Job, state=JobState.DONE, kind=JobKind.SAMPLE)
    only(page.get_by_role("button", name="Draw the grid")).click()
    worked(lambda: workspace.catalog.count(Job, state=JobState.DONE, kind=JobKind.SAMPLE) >= before + 9)
    expect(page.get_by_role("button", name=re.compile("seed 3"))).to_have_count(3)
    expect(page.locator(".face img")).to_have_count(9)
    (made,) = workspace.catalog.list(Comparison, limit=1)
    steps = next(row for row in spec_of(made).axes if row.name == "steps")
    assert steps.values == (10,)
    return made


def ten_steps(page: Page) -> None:
    """In place of the usual number."""
    only(page.get_by_text("Steps, guidance, sampler")).click()
    box = page.get_by_role("combobox", name=re.compile("How many steps"))
    only(box).press("Backspace")  # takes off the last value, the only one
    choose(page, "How many steps", "10")
    page.keyboard.press("Escape")


def choose(page: Page, label: str, option: str) -> None:
    """A value of a list."""
    box = page.get_by_role("combobox", name=re.compile(label))
    wanted = page.get_by_role("option", name=option, exact=True)
    for _ in range(5):
        page.wait_for_timeout(300)  # what was done before begins to run the page's script
        rest(page)
        only(box).click()  # after a choice the list before stands beside the new one for a moment
        with contextlib.suppress(AssertionError):
            expect(wanted).to_have_count(1, timeout=3000)
            break
        page.keyboard.press("Escape")  # the page was drawn anew, and closed the list
    only(wanted).click()


def the_slider(page: Page) -> None:
    """The line moves with the keys, and what is left of it is the one picture."""
    only(page.get_by_role("radio", name="Slider")).click()
    line = page.get_by_role("slider", name="Move between the two pictures")
    expect(line).to_have_attribute("aria-valuenow", "50")
    line.focus()
    line.press("ArrowLeft")
    line.press("ArrowLeft")
    expect(line).to_have_attribute("aria-valuenow", "46")
    expect(page.locator(".over")).to_have_css("clip-path", "inset(0px 54% 0px 0px)")


def ten_votes(workspace: Workspace, page: Page, comparison: Comparison) -> None:
    """Names stay hidden until the vote; ten votes make a ranking."""
    only(page.get_by_role("radio", name="Blind vote")).click()
    arena = page.locator("#arena")
    for count in range(1, VOTES + 1):
        expect(arena).to_have_count(1)  # the last pair is gone
        expect(arena.locator("img").first).to_be_visible()
        seen = arena.inner_html()
        assert not any(name in seen for name in NAMES)
        arena.get_by_role("button", name=("← Left", "Right →", "No difference")[count % 3]).click()
        expect(page.get_by_text(f"{count} vote" if count > 1 else "1 vote")).to_be_visible()
        assert workspace.catalog.count(Vote, comparison_id=comparison.id) == count
    expect(page.get_by_text("strength", exact=False).first).to_be_visible()


def trained(workspace: Workspace) -> Run:
    """A short run with two checkpoints; the app's worker trains it."""
    uploads = [(f"{n}.png", encoded(picture)) for n, (picture, _) in enumerate(demo_set("style", 4, 5))]
    uploads += [(f"{n}.txt", caption.encode()) for n, (_, caption) in enumerate(demo_set("style", 4, 5))]
    dataset = create_dataset(workspace, "compared", uploads, trigger="neonsign").dataset
    recipe = apply_sets(preset_by_name("pocket-style"), list(SETS))
    return launch(workspace, recipe, workspace.catalog.get(Base, "pocket"), dataset, "judged")


def keep_this_one(workspace: Workspace, address: str, page: Page, run: Run) -> None:
    """A checkpoint becomes an adapter."""
    page.goto(f"{address}/runs?run={run.id}")
    worked(lambda: workspace.catalog.get(Run, run.id).state is RunState.FINISHED)
    expect(page.get_by_text("Finished").first).to_be_visible()
    assert [one.step for one in workspace.catalog.list(Adapter, run_id=run.id)] == [4]
    row = page.locator(f".st-key-panel-checkpoint-{run.id}-2")
    row.get_by_role("button", name="Keep this one").click()
    expect(row.get_by_text("your pick")).to_be_visible()
    expect(row.get_by_text("In the library")).to_be_visible()
    assert {one.step for one in workspace.catalog.list(Adapter, run_id=run.id)} == {2, 4}


def the_evidence(workspace: Workspace, address: str, page: Page, run: Run) -> None:
    """Asked for with few pictures, looked at on the page of the run, then as a whole."""
    wishes = Wishes(
        seeds=2,
        weights=(1.0,),
        prompts=("a red circle, neonsign", "a blue star, neonsign"),
        priors=("a red circle",),
    )
    made = evaluations.begin(workspace, evaluations.ask(workspace, run, wishes))
    page.reload()
    worked(lambda: bool(workspace.catalog.get(Evaluation, made.id).result))
    expect(page.get_by_role("button", name="See the evidence")).to_be_visible()
    only(page.get_by_role("button", name="See the evidence")).click()
    expect(page.get_by_role("heading", name="Evidence: judged")).to_be_visible()
    expect(page.get_by_role("heading", name="Best first")).to_be_visible()
    with page.expect_download() as saved:
        only(page.get_by_role("button", name="Save the report")).click()
    text = saved.value.path().read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "Use judged" in text
