"""Grids in a workspace: what is queued, what is taken, what goes on after a death; files and pages."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image as Pixels

from registry.errors import BadInput, NotFound
from registry.records import Adapter, Base, Comparison, Job, JobKind, JobState, Sample, Vote
from studio.compare import grids
from studio.compare.arena import axes_to_vote_on, by_prompt, cast, next_pair, ranking, undo
from studio.compare.outputs import export, made_as
from studio.compare.spec import make_spec
from studio.runs.worker import Worker
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.painter import Painter
from tests.support.sampling import add_adapter, request
from tests.support.supervision import QUICK, make_run


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path / "home")
    yield workspace
    workspace.catalog.close()


def cube(ws: Workspace, side: int = 4) -> Comparison:
    """Adapters x weights x seeds."""
    names = [add_adapter(ws, f"a{n}", seed=n).id for n in range(side - 1)]
    axes = {"adapter": ["none", *names], "weight": [0.0, 0.5, 1.0, 1.25][:side], "seed": list(range(side))}
    return grids.create(ws, make_spec(request(ws, steps=2), axes), "cube")


def work(ws: Workspace, most: int = 10_000) -> Painter:
    painter = Painter(ws, most)
    Worker(ws, limits=QUICK, sampler=painter).run(once=True)
    return painter


def test_a_4x4x4_grid_grown_by_a_row_draws_the_new_cells_only(ws: Workspace):
    made = cube(ws)
    once = 4 + 3 * 3 * 4  # for each seed: none (with it all of weight 0), three adapters at three weights
    assert ws.catalog.count(Job, kind=JobKind.SAMPLE, background=True) == once
    before = grids.cells_of(ws, made)
    assert len(before) == 64
    for cell in before.values():  # as a sampler would
        file = ws.sample_dir(cell.sample_id) / "000.png"
        file.write_bytes(b"x")
        ws.catalog.update(Sample, cell.sample_id, files=(ws.relative(file),))
    for job in ws.catalog.list(Job):
        ws.catalog.finish_job(job.id, JobState.DONE, result={"seconds": 2.0})
    grids.grow(ws, made, {"seed": [4]})
    after = grids.cells_of(ws, made)
    assert len(after) == 80
    assert all(after[place].sample_id == cell.sample_id for place, cell in before.items())
    assert ws.catalog.count(Job, state=JobState.QUEUED) == 1 + 3 * 3
    left = grids.progress(ws, made, after)
    assert (left.total, left.drawn, left.live, left.seconds_left) == (50, 40, 10, 20.0)
    same = grids.create(ws, grids.spec_of(ws.catalog.get(Comparison, "cube")), "again")
    assert ws.catalog.count(Job, state=JobState.QUEUED) == 10, "what waits already is not queued twice"
    assert {cell.sample_id for cell in grids.cells_of(ws, same).values()} == {
        cell.sample_id for cell in after.values()
    }


def test_killed_in_the_middle_the_rest_goes_on_by_itself(ws: Workspace):
    made = cube(ws, 2)  # 2 adapters x 2 weights x 2 seeds: 4 pictures
    first = Painter(ws, 2)
    with pytest.raises(KeyboardInterrupt):
        Worker(ws, limits=QUICK, sampler=first).run(once=True)
    assert len(first.drawn) == 2
    second = work(ws)
    assert len(second.drawn) == 2
    assert not set(first.drawn) & set(second.drawn)
    done = grids.progress(ws, made, grids.cells_of(ws, made))
    assert (done.drawn, done.live, done.failed, done.missing) == (4, 0, 0, 0)


def test_a_person_is_served_before_the_cells_that_wait(ws: Workspace):
    cube(ws, 2)
    mine = submit(ws, request(ws, seed=99))
    assert work(ws).drawn[0] == mine.id


def test_stop_keeps_what_is_drawn_and_go_on_draws_the_rest(ws: Workspace):
    made = cube(ws, 2)
    with pytest.raises(KeyboardInterrupt):
        Worker(ws, limits=QUICK, sampler=Painter(ws, 1)).run(once=True)
    ws.catalog.release_jobs(keep="")
    assert grids.stop(ws, made) == 3
    for job in ws.catalog.list(Job, state=JobState.LEASED):
        ws.catalog.finish_job(job.id, JobState.CANCELLED)
    stopped = grids.progress(ws, made, grids.cells_of(ws, made))
    assert (stopped.drawn, stopped.live, stopped.missing) == (1, 0, 3)
    made = grids.go_on(ws, made)
    work(ws)
    cells = grids.cells_of(ws, made)
    assert grids.progress(ws, made, cells).drawn == 4
    assert ws.catalog.count(Sample) == 4, "the samples that were called off are gone"
    lost = next(iter(cells.values())).sample_id
    (ws.sample_dir(lost) / "000.png").unlink()
    grids.go_on(ws, made)
    assert len(work(ws).drawn) == 1, "a picture that was deleted is drawn again"


def test_a_picture_of_the_sample_page_is_taken(ws: Workspace):
    mine = submit(ws, request(ws, seed=3))
    work(ws)
    made = grids.create(ws, make_spec(request(ws), {"seed": [3, 4]}))
    assert made.name == "pocket, seed"
    assert grids.cells_of(ws, made)[0,].sample_id == mine.id
    assert grids.remove(ws, made) == 0
    assert ws.catalog.find(Sample, mine.id) is not None, "it was not made for the comparison"
    assert ws.catalog.count(Sample) == 1


def test_another_base_request_is_another_comparison(ws: Workspace):
    made = grids.create(ws, make_spec(request(ws), {"seed": [1]}), "g")
    with pytest.raises(BadInput, match="there already"):
        grids.create(ws, make_spec(request(ws), {"seed": [1]}), "g")
    with pytest.raises(BadInput, match="another negative"):
        grids.grow_to(ws, made, make_spec(request(ws, negative="grey"), {"seed": [2]}))
    grown = grids.grow_to(ws, made, make_spec(request(ws), {"seed": [2]}))
    assert grids.spec_of(grown).size == 2
    with pytest.raises(NotFound, match="adapter 'nobody'"):
        grids.grow(ws, made, {"adapter": ["nobody"]})
    assert grids.spec_of(ws.catalog.get(Comparison, "g")).size == 2, "nothing is half done"


def test_a_picture_to_start_from_is_kept(ws: Workspace, tmp_path: Path):
    file = tmp_path / "start.png"
    Pixels.new("RGB", (32, 32), "red").save(file)
    made = grids.create(ws, make_spec(request(ws, image=str(file)), {"seed": [1]}))
    keys = {cell.key for cell in grids.cells_of(ws, made).values()}
    file.unlink()
    made = grids.grow(ws, made, {"seed": [2]})
    assert keys < {cell.key for cell in grids.cells_of(ws, made).values()}


class Links(HTMLParser):
    """Everything in a page that leads somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.open: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.leads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.pictures += tag == "img"
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_sheet_page_and_facts(ws: Workspace, tmp_path: Path):
    ink = add_adapter(ws, "<b>ink & co", seed=1)
    axes = {"adapter": ["none", ink.id], "prompt": ["a <i>red</i> circle", "a star"], "seed": [1, 2]}
    made = grids.create(
        ws, make_spec(request(ws, steps=2), axes, {"adapter": ["none", ink.name]}), "all of it"
    )
    empty = made_as(ws, made, "html").decode()
    assert empty.count("not drawn") == 8
    work(ws)
    pair = next_pair(ws, made, "adapter")
    assert pair is not None
    cast(ws, made, pair, "left")
    files = export(ws, made, tmp_path / "out")
    assert [file.name for file in files] == ["all-of-it.png", "all-of-it.html", "all-of-it.json"]
    with Pixels.open(files[0]) as sheet:
        assert sheet.width > 2 * 256
        assert len(set(sheet.convert("RGB").get_flattened_data())) > 6
    page = files[1].read_text()
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp", page.replace("// ", ""))
    assert "default-src 'none'" in page
    links = Links()
    links.feed(page)
    links.close()
    assert links.open == []
    inside = [lead for lead in links.leads if lead]
    assert len(inside) == 8
    assert all(lead.startswith("data:image/") for lead in inside)
    assert "<b>ink" not in page
    assert "makeSlider" in page
    facts = json.loads(files[2].read_text())
    cells = {tuple(cell["place"]): cell for cell in facts["cells"]}
    assert len(cells) == 8
    assert cells[1, 0, 1]["values"] == {"adapter": ink.id, "prompt": "a <i>red</i> circle", "seed": 2}
    assert cells[1, 0, 1]["adapters"][0]["tensor_sha256"] == ink.tensor_sha256
    assert all(len(cell["sha256"]) == 64 and Path(cell["file"]).is_file() for cell in facts["cells"])
    assert facts["rankings"]["adapter"]["votes"] == 1
    grids.remove(ws, made)
    assert (ws.catalog.count(Sample), ws.catalog.count(Vote), ws.catalog.count(Comparison)) == (0, 0, 0)


def test_votes_on_one_axis_at_the_same_prompt_and_seed(ws: Workspace):
    ids = [add_adapter(ws, name, seed=n).id for n, name in enumerate(("ink", "wash"))]
    axes = {"adapter": ["none", *ids], "weight": [0.0, 1.0], "prompt": ["x", "y"], "seed": [1, 2]}
    made = grids.create(ws, make_spec(request(ws, steps=2), axes), "votes")
    assert axes_to_vote_on(grids.spec_of(made)) == ["adapter", "weight"]
    assert next_pair(ws, made, "adapter") is None, "nothing is drawn"
    work(ws)
    cells = {
        cell.sample_id: grids.spec_of(made).values_at(place)
        for place, cell in grids.cells_of(ws, made).items()
    }
    seen = set()
    for _ in range(18):
        pair = next_pair(ws, made, "adapter")
        assert pair is not None
        one, two = cells[pair.left_sample], cells[pair.right_sample]
        assert pair.left_sample != pair.right_sample, "weight 0 is the same picture for all"
        assert (one["prompt"], one["seed"]) == (two["prompt"], two["seed"])
        seen.add((frozenset((pair.left, pair.right)), pair.context))
        best = json.dumps(ids[0])
        cast(ws, made, pair, {pair.left: "left", pair.right: "right"}.get(best, "tie"))
    assert len(seen) == 12, "three pairs, two prompts, two seeds: each comes before one comes again"
    found = ranking(ws, made, "adapter")
    assert (found.rows[0].value, found.votes) == (best, 18)
    assert found.rows[0].low > found.rows[1].strength
    assert (
        found.advice[0]
        == f"{found.rows[0].label} is liked better than {found.rows[1].label}: that is certain at 95 %."
    )
    assert set(by_prompt(ws, made, "adapter")) == {"x", "y"}
    assert undo(ws, made, "adapter") is not None
    assert ranking(ws, made, "adapter").votes == 17
    with pytest.raises(BadInput, match="has no values to choose from"):
        next_pair(ws, made, "seed")
    with pytest.raises(BadInput, match="vote 'up'"):
        cast(ws, made, pair, "up")


def test_a_checkpoint_is_an_adapter(ws: Workspace):
    """RUN@STEP in a request, in a comparison, and back from the picture."""
    from studio.compare.build import from_texts
    from studio.runs.checkpoints import verified_checkpoints
    from studio.sampling.again import same_adapter
    from studio.sampling.chosen import chosen_adapter, find_adapter
    from studio.sampling.metadata.said import AdapterMark
    from studio.sampling.mixes import mix_text, read_mix
    from tests.support.sheets import add_checkpoints

    run = make_run(ws, name="ink")
    add_checkpoints(ws, run, (100, 200))
    assert list(verified_checkpoints(ws.run_dir(run.id), ws.key, {})) == [100, 200]
    found = chosen_adapter(ws, "ink@200")
    assert (found.id, found.name, found.step, found.run_id) == (f"{run.id}@200", "ink@200", 200, run.id)
    assert len(found.tensor_sha256) == 64
    assert find_adapter(ws, "nobody@200") is None
    with pytest.raises(NotFound, match=r"checkpoint ink@7: does not exist\. there are 100, 200"):
        chosen_adapter(ws, "ink@7")
    ws.catalog.update(type(run), run.id, step=20)
    with pytest.raises(NotFound, match="checkpoint ink@5: is not kept any more"):
        chosen_adapter(ws, "ink@5")
    with pytest.raises(BadInput, match="'last' is not a step"):
        chosen_adapter(ws, "ink@last")
    spec = from_texts(ws, request(ws, steps=2), {"checkpoint": ["none", "ink:all"], "seed": ["1"]})
    assert spec.axes[0].values == ("none", f"{run.id}@100", f"{run.id}@200")
    assert spec.axes[0].labels == ("none", "ink@100", "ink@200")
    made = grids.create(ws, spec)
    cell = grids.cells_of(ws, made)[2, 0]
    (use,) = ws.catalog.get(Sample, cell.sample_id).adapters
    assert (use.adapter_id, use.tensor_sha256) == (f"{run.id}@200", found.tensor_sha256)
    (written,) = SampleTask.read(ws.sample_dir(cell.sample_id)).adapters
    assert ws.resolve(written.path).is_file()
    mark = AdapterMark("ink@200", tensor_sha256=found.tensor_sha256, id=found.id)
    assert same_adapter(ws, mark, "sd15").id == found.id
    assert (
        same_adapter(ws, AdapterMark("ink@200", tensor_sha256=found.tensor_sha256[:12]), "sd15").id
        == found.id
    )
    tagged = submit(ws, request(ws, prompt="a star <lora:ink@200:0.5>"))
    assert [use.adapter_id for use in tagged.adapters] == [found.id]
    (part,) = read_mix(ws, mix_text(ws, ws.catalog.get(Base, "pocket"), spec.request((2, 0)).adapters), "mix")
    assert part.id == found.id
    assert ws.catalog.count(Adapter) == 0
    (ws.resolve(written.path)).write_bytes(b"other")
    with pytest.raises(BadInput, match="changed after it was written"):
        chosen_adapter(ws, "ink@200")
    assert ws.catalog.count(Base) > 0
