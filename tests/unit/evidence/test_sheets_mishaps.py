"""Evidence sheets when something is wrong or goes meanwhile: said in one line, and it goes on afterwards."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from PIL import Image

from registry import journal, migrations
from registry.errors import BadInput, Damaged, StudioError
from registry.records import Adapter, Comparison, Evaluation, Job, JobKind, JobState, Run, RunState, Sample
from studio.adapters import trash
from studio.compare import floor, grids
from studio.evidence import evaluations, views
from studio.evidence.outputs import check_out
from studio.evidence.pictures import Pictures
from studio.evidence.plan import Plan, Wishes, literal
from studio.evidence.task import shots_of, training_pictures
from studio.evidence.waiting import wait
from studio.runs import chores
from studio.runs.chores import Chores
from studio.runs.keep import keep
from studio.runs.worker import Worker
from studio.sampling.prompts.parse import parse
from studio.sampling.prompts.tags import take_tags
from studio.sampling.prompts.wildcards import has_choices
from studio.workspace import Workspace
from tests.app.compared import draw
from tests.support.cli import call_here
from tests.support.painter import Painter
from tests.support.sampling import add_adapter
from tests.support.supervision import QUICK, until

TWO = ("a boat, inkstyle", "a tower, inkstyle")


def begun(ws: Workspace) -> Evaluation:
    """Nine small cells of the adapter of the run."""
    adapter = ws.catalog.list(Adapter, name="ink")[0]
    wishes = Wishes(prompts=TWO, priors=("a boat",), seeds=2, weights=(1.0,))
    return evaluations.begin(ws, evaluations.ask(ws, adapter, wishes))


def drawn(ws: Workspace) -> Evaluation:
    evaluation = begun(ws)
    for sample in [one for one in ws.catalog.list(Sample) if not one.files]:
        draw(ws, sample.id, Image.new("RGB", (64, 64), "red"))
    return evaluation


def opened(ws: Workspace, evaluation: Evaluation) -> tuple[Pictures, Plan]:
    plan = evaluations.plan_of(evaluation)
    return Pictures(ws, evaluation, plan), plan


def test_what_would_fail_after_hours_of_drawing_is_said_before(
    chained: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(chained.home)
    (chained.home / "wildcards" / "config.json").write_text('{"model_type": "bert"}')
    about = chained.catalog.get(Adapter, "ink")
    for wishes, said in (
        (Wishes(prompts=("", "a")), "prompt '': is empty"),
        (Wishes(prompts=("a\x1b[31m", "a")), "prompt 'a\\x1b[31m': has a control character"),
        (Wishes(prompts=("a", "b"), priors=("b",)), "prompt 'b': is both a prompt and a prior prompt"),
        (Wishes(weights=(float("nan"),)), "weight nan: should be"),
        (Wishes(encoder="no such"), "is neither a folder that is there nor a hub id"),
        (Wishes(encoder="cache"), "has no readable config.json"),
        (Wishes(encoder="wildcards"), "is a model of type bert. use one of clip"),
    ):
        with pytest.raises(BadInput, match=re.escape(said)):
            evaluations.ask(chained, about, wishes)
    (chained.home / "wildcards" / "config.json").write_text('{"model_type": "clip"}')
    asked = evaluations.ask(chained, about, Wishes(encoder="wildcards"))
    assert asked.plan.encoder == str(chained.home / "wildcards"), "the worker stands in another folder"


def test_where_the_report_goes_is_tried_before(chained: Workspace, tmp_path: Path):
    if Path("/proc/self").is_dir():
        with pytest.raises(BadInput, match="/proc: cannot be written to"):
            check_out(Path("/proc/ink.html"))
    check_out(tmp_path / "ink.html")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    said = call_here(chained.home, "evaluate", "ink", "--queue", "--out", tmp_path / "ink.html")
    assert (said.code, said.stdout) == (2, "")
    assert "--queue does not wait" in said.stderr
    with pytest.raises(BadInput, match=re.escape("studio evaluate ink --checkpoints 5")):
        evaluations.about_of(chained, "ink@5")
    with pytest.raises(BadInput, match="names no step of a run"):
        keep(chained, f"ink@{'9' * 5000}")
    assert chained.catalog.count(Evaluation) == 0


def test_prompts_without_the_trigger_have_other_prior_prompts(chained: Workspace):
    asked = evaluations.ask(chained, chained.catalog.get(Adapter, "ink"), Wishes(prompts=("a", "b")))
    assert sum(not prompt.about for prompt in asked.plan.prompts) == 2
    prior = next(prompt.text for prompt in asked.plan.prompts if not prompt.about)
    wishes = Wishes(prompts=(prior, "b"))
    asked = evaluations.ask(chained, chained.catalog.get(Adapter, "ink"), wishes)
    assert len({prompt.text for prompt in asked.plan.prompts}) == len(asked.plan.prompts) == 3


def test_a_run_of_which_nothing_is_left_is_not_waited_for(chained: Workspace):
    run = chained.catalog.get(Run, "ink")
    trash(chained, "ink")
    with pytest.raises(BadInput, match="has no checkpoint yet"):
        evaluations.ask(chained, run)
    with pytest.raises(BadInput, match="has ended and nothing of it is left"):
        evaluations.ask(chained, chained.catalog.update(Run, run.id, state=RunState.FINISHED))


def test_a_caption_is_drawn_as_it_stands():
    for text in (
        "miku (vocaloid), [x:y:0.5]",
        "a __b__ c",
        "{a|b} \\",
        "<lora:x:1> a",
        "smile :)",
        "a_b ___c",
    ):
        prompt = literal(text)
        assert take_tags(prompt) == (prompt, ())
        assert not has_choices(prompt)
        (((sections, _share),),) = (parse(prompt).at(0, 10),)
        assert [piece.text for section in sections for piece in section] == [text]
    assert literal("a red heron, standing") == "a red heron, standing"


def test_a_lost_picture_is_drawn_again_and_measured_then(chained: Workspace):
    made = drawn(chained)
    assert evaluations.queue_due(chained) == 1
    (job,) = chained.catalog.list(Job, kind=JobKind.EVALUATE)
    pictures, plan = opened(chained, made)
    lost = chained.resolve(chained.catalog.get(Sample, next(iter(pictures.samples.values()))).files[0])
    lost.unlink()
    with pytest.raises(BadInput, match="for 'a boat, inkstyle' is gone"):
        shots_of(pictures, plan, (64, 64))
    chained.catalog.finish_job(job.id, JobState.FAILED, error="a picture: is gone.")
    evaluations.go_on(chained, made)
    stage = evaluations.stage_of(chained, made)
    assert (stage.name, stage.total - stage.drawn) == ("drawing", 1)
    (sample,) = [one for one in chained.catalog.list(Sample) if not one.files]
    draw(chained, sample.id, Image.new("RGB", (64, 64), "blue"))
    assert evaluations.queue_due(chained) == 1
    pictures, plan = opened(chained, made)
    assert len(shots_of(pictures, plan, (64, 64))) == 12


def test_measuring_can_be_called_off_before_a_worker_has_queued_it(chained: Workspace):
    made = drawn(chained)
    assert evaluations.stop(chained, made) == 0
    assert evaluations.queue_due(chained) == 0
    assert evaluations.stage_of(chained, made).name == "failed"
    evaluations.go_on(chained, made)
    assert evaluations.stage_of(chained, made).name == "measuring"


def test_damaged_pictures_are_said_to_be(chained: Workspace):
    pictures, plan = opened(chained, begun(chained))
    blob = chained.blobs.path(plan.training[0])
    data = bytearray(blob.read_bytes())
    data[-12:-4] = b"\0\0\0\0IEN?"  # a chunk that is none
    data[60:64] = b"\0\0\0\0"
    blob.chmod(0o600)
    for content in (bytes(data), data[:50], b""):
        blob.write_bytes(content)
        with pytest.raises(BadInput, match="of the data set: is gone or damaged"):
            training_pictures(pictures, plan, (64, 64))


def test_a_sheet_whose_comparison_is_removed_ends_in_one_line(chained: Workspace):
    made = drawn(chained)
    evaluations.queue_due(chained)
    grids.remove(chained, chained.catalog.get(Comparison, made.comparison_id))
    assert chained.catalog.count(Evaluation) == 0
    with pytest.raises(StudioError, match="was removed meanwhile"):
        wait(chained, made)


def test_a_listed_twin_is_judged_as_the_adapter_that_it_is(chained: Workspace):
    known = add_adapter(chained, "foreign")
    file = chained.home / "adapters" / "twin.safetensors"
    shutil.copy(chained.resolve(known.path), file)
    (twin,) = chained.catalog.add_listed(
        [
            Adapter(
                name="twin",
                tensor_sha256="",
                file_sha256="",
                path=chained.relative(file),
                family="sd15",
                origin="import",
            )
        ]
    )
    wishes = Wishes(base="pocket", dataset="herons", prompts=TWO, seeds=2, weights=(1.0,))
    made = evaluations.begin(chained, evaluations.ask(chained, twin, wishes))
    assert made.adapter_id == known.id


def test_nothing_is_left_of_a_sheet_that_cannot_be_kept(chained: Workspace, monkeypatch: pytest.MonkeyPatch):
    before = chained.catalog.count(Sample), len(list((chained.home / "samples").iterdir()))
    monkeypatch.setattr(evaluations, "_owner", lambda _about: {"run_id": "gone"})
    with pytest.raises(BadInput, match="refers to one that does not exist"):
        begun(chained)
    assert chained.catalog.count(Comparison) == 0
    assert (chained.catalog.count(Sample), len(list((chained.home / "samples").iterdir()))) == before


def test_a_worker_that_ends_with_the_queue_measures_before(
    chained: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chores.sys, "executable", "/bin/true")
    begun(chained)
    for job in chained.catalog.list(Job, kind=JobKind.TRAIN):
        chained.catalog.cancel_job(job.id)
    Worker(chained, limits=QUICK, sampler=Painter(chained)).run(once=True)
    (job,) = chained.catalog.list(Job, kind=JobKind.EVALUATE)
    assert job.state is JobState.DONE


def test_measuring_that_dies_at_another_place_each_time_is_given_up(
    chained: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    drawn(chained)
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\nmkdir -p "$3/cache/imports"\n'
        'echo "{\\"done\\": $$}" > "$3/cache/imports/$4.json"\necho x >> "$3/starts"\nkill -9 $$\n'
    )
    script.chmod(0o700)
    monkeypatch.setattr(chores.sys, "executable", str(script))
    hands = Chores(chained, owner="me", lease=60)
    evaluations.queue_due(chained)

    def ended() -> bool:
        hands.tick((JobKind.EVALUATE,))
        return chained.catalog.list(Job, kind=JobKind.EVALUATE)[0].state is JobState.FAILED

    until(ended)
    (job,) = chained.catalog.list(Job, kind=JobKind.EVALUATE)
    assert job.error == f"evaluate {job.id}: its process died 3 times (exit code -9)."
    assert (chained.home / "starts").read_text().split() == ["x"] * 3


def test_values_that_are_not_finite_are_no_figures():
    class Broken:
        def encode(self, pictures: list[Image.Image], _size: tuple[int, int]) -> "Broken":
            self.values = np.full((len(pictures), 4, 8, 8), np.nan)
            return self

        def numpy(self) -> np.ndarray:
            return self.values

    eyes = views.Eyes((64, 64), Broken(), None)
    with pytest.raises(Damaged, match="the base's autoencoder: gives values that are not finite"):
        eyes.see([Image.new("RGB", (64, 64), "red")])


def test_an_autoencoder_that_is_gone_or_damaged_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def damaged(_base: Path) -> None:
        raise OSError("no file named\n diffusion_pytorch_model.safetensors")

    monkeypatch.setattr(floor, "Autoencoder", damaged)
    for wrong in (
        "the base is not there any more",
        "holds no autoencoder",
        "cannot be loaded (no file named diff",
    ):
        with pytest.raises(BadInput, match=re.escape(wrong)):
            views.open_autoencoder(tmp_path / "base")
        (tmp_path / "base" / "vae").mkdir(parents=True, exist_ok=True)
        if wrong.startswith("holds"):
            (tmp_path / "base" / "vae" / "config.json").write_text("{}")


def test_an_older_program_gets_no_jobs_that_it_does_not_know(chained: Workspace):
    made = drawn(chained)
    evaluations.queue_due(chained)
    chained.catalog.close()
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = journal.open_engine(journal.parse_url(f"sqlite:///{chained.home / 'catalog.sqlite'}"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0010")
        assert not connection.exec_driver_sql("SELECT * FROM jobs WHERE kind = 'evaluate'").all()
    engine.dispose()
    again = Workspace.open(chained.home).catalog
    assert (again.count(Run), again.count(Evaluation), again.check()) == (1, 0, "ok")
    assert again.get(Run, "ink").pick_by == ""
    assert again.get(Comparison, made.comparison_id).name == "Evidence of ink"
