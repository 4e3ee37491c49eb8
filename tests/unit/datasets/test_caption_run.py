"""Captions for a data set through the real child: kept as they come, resumed, stopped, never over others'."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image as Pixels

from registry.errors import BadInput, StudioError
from registry.records import Dataset, Image
from studio.datasets.captioners import run as run_module
from studio.datasets.captioners.child import caption_all
from studio.datasets.captioners.run import CaptionReport, caption_dataset
from studio.datasets.captioners.table import CaptionOptions
from studio.datasets.ingest import create_dataset, images_of, remove_images, set_captions
from studio.workspace import Workspace
from tests.support import captioners as tiny
from tests.support.pictures import encoded, pixels


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def dataset(ws: Workspace, tmp_path: Path) -> Dataset:
    folder = tmp_path / "cats"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(encoded(pixels(number)))
    (folder / "1.txt").write_text("mine")
    return create_dataset(ws, "cats", [folder]).dataset


def options(model: Path | str, **more: object) -> CaptionOptions:
    values = {"captioner": "blip", "model": str(model), "max_tokens": 6, "batch": 2, **more}
    return CaptionOptions(**values)  # type: ignore[arg-type]


def captions(ws: Workspace, dataset: Dataset) -> list[str]:
    return [image.caption for image in images_of(ws, dataset)]


def test_what_has_none_is_captioned_and_the_rest_is_left(
    ws: Workspace,
    dataset: Dataset,
    blip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    told: list[tuple[str, int, int]] = []
    report = caption_dataset(ws, dataset, options(blip), progress=lambda *p: told.append(p))
    made = captions(ws, dataset)
    assert report == CaptionReport(written=4, had=1, model=str(blip))
    assert made[1] == "mine"
    assert all(made)
    assert [phase for phase, done, _ in told if not done][:2] == ["starting", "fetching"]
    assert told[-1] == ("captioning", 4, 4)
    changed = ws.catalog.get(Dataset, dataset.id)
    assert changed.content_hash != dataset.content_hash
    # a second time there is nothing to do, and no child is started
    monkeypatch.setattr(run_module, "_Child", None)
    assert caption_dataset(ws, dataset, options(blip)) == CaptionReport(had=5)

    monkeypatch.undo()
    from studio.cli import run

    monkeypatch.setenv("STUDIO_HOME", str(ws.home))
    command = [
        "--json",
        "datasets",
        "caption",
        "cats",
        "--with",
        "blip",
        "--model",
        str(blip),
        "--max-tokens",
        "6",
    ]
    assert run([*command, "--overwrite", "--prompt", "a photo of"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 5
    assert all(text.startswith("a photo of") for text in captions(ws, dataset))
    assert run(["datasets", "caption", "cats", "1.png", "by hand"]) == 0
    assert captions(ws, dataset)[1] == "by hand"
    assert run(["datasets", "caption", "cats", "1.png"]) == 2
    assert run(["datasets", "caption", "cats", "--with", "nobody"]) == 2


def test_what_the_child_finds_wrong_is_one_line(ws: Workspace, dataset: Dataset, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: has no config\.json"):
        caption_dataset(ws, dataset, options(tmp_path / "empty"))
    with pytest.raises(BadInput, match="is neither a folder nor a hub id"):
        caption_dataset(ws, dataset, options("nowhere"))
    assert captions(ws, dataset)[0] == ""


@pytest.mark.parametrize(
    "wrong", [{"captioner": "x"}, {"batch": 0}, {"threshold": 1.5}, {"max_tokens": 0}, {"batch": 100}]
)
def test_options_out_of_range_are_refused_before_anything_starts(
    ws: Workspace, dataset: Dataset, wrong: dict[str, object]
):
    with pytest.raises(BadInput, match=r"is not known|is .*\. use "):
        caption_dataset(ws, dataset, options("m", **wrong))


class FakeChild:
    """Answers from a list; what happens in between is up to the test."""

    answers: list[object] = []  # noqa: RUF012

    def __init__(self, ws: Workspace) -> None:
        self.request: dict[str, list[dict[str, str]]] = {}

    def __enter__(self) -> "FakeChild":
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, request: dict[str, list[dict[str, str]]]) -> None:
        self.request = request

    def next(self, stop: object) -> object:
        answer = self.answers.pop(0)
        if callable(answer):
            answer = answer([one["id"] for one in self.request["pictures"]])
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeChild]:
    monkeypatch.setattr(run_module, "_Child", FakeChild)
    return FakeChild


def test_what_was_written_before_a_stop_a_death_or_ctrl_c_is_kept(
    ws: Workspace, dataset: Dataset, fake: type[FakeChild]
):
    for number, end in enumerate((None, StudioError("captioner", "died", "x"), KeyboardInterrupt())):
        fake.answers = [lambda ids: {"captions": {ids[0]: f"text {len(ids)}"}}, end]
        if end is None:
            report = caption_dataset(ws, dataset, options("m"))
            assert (report.stopped, report.written) == (True, 1)
        else:
            with pytest.raises(type(end)):
                caption_dataset(ws, dataset, options("m"))
        assert sum(text.startswith("text") for text in captions(ws, dataset)) == number + 1
    assert captions(ws, dataset) == ["text 4", "mine", "text 3", "text 2", ""]


def test_others_work_is_never_lost(ws: Workspace, dataset: Dataset, fake: type[FakeChild]):
    """Someone writes a caption and removes a picture while the model works."""
    images = images_of(ws, dataset)

    def meanwhile(ids: list[str]) -> dict[str, object]:
        set_captions(ws, dataset, {images[0].id: "by hand"})
        remove_images(ws, dataset, [images[2].id])
        return {"captions": dict.fromkeys(ids, "by the model")}

    fake.answers = [meanwhile, {"done": True}]
    report = caption_dataset(ws, dataset, options("m"))
    assert captions(ws, dataset) == ["by hand", "mine", "by the model", "by the model"]
    assert report.written == 2


def test_no_words_are_told_and_leave_an_old_caption(ws: Workspace, dataset: Dataset, fake: type[FakeChild]):
    fake.answers = [lambda ids: {"captions": {i: ("" if n < 2 else " a\x00b ") for n, i in enumerate(ids)}},
                    {"done": True}]  # fmt: skip
    report = caption_dataset(ws, dataset, options("m"), overwrite=True)
    assert report.empty == ["0.png", "1.png"]
    assert captions(ws, dataset) == ["", "mine", "ab", "ab", "ab"]


def test_stop_ends_the_real_child_at_once(ws: Workspace, dataset: Dataset, blip: Path):
    began = time.monotonic()
    assert caption_dataset(ws, dataset, options(blip), stop=lambda: True).stopped
    assert time.monotonic() - began < 5


def test_a_child_that_dies_is_told_with_its_last_line(
    ws: Workspace, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module.sys, "executable", "/bin/false")
    with pytest.raises(StudioError, match=r"captioner: died \(exit code 1\)\. see .*captioner\.log"):
        caption_dataset(ws, dataset, options("m"))


def test_batches_are_halved_when_memory_runs_out(tmp_path: Path):
    paths = []
    for number in range(7):
        Pixels.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        paths.append({"id": str(number), "path": str(tmp_path / f"{number}.png"), "name": f"{number}.png"})
    sizes: list[int] = []

    def caption(pictures: list[Pixels.Image]) -> list[str]:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return [str(picture.getpixel((0, 0))[0]) for picture in pictures]

    made: dict[str, str] = {}
    for part in caption_all(caption, paths, 4):
        made |= part
    assert made == {str(n): str(n) for n in range(7)}
    assert sizes == [4, 2, 2, 2, 1]

    def never(pictures: list[Pixels.Image]) -> list[str]:
        raise MemoryError

    with pytest.raises(StudioError, match="memory: ran out for a single picture"):
        list(caption_all(never, paths, 4))
    (tmp_path / "3.png").write_text("hello")
    with pytest.raises(BadInput, match=r"picture 3\.png: cannot be read"):
        list(caption_all(caption, paths, 2))


def test_pictures_are_named_by_id(ws: Workspace, dataset: Dataset):
    image = images_of(ws, dataset)[0]
    assert isinstance(image, Image)
    sent = run_module._picture(ws, image)
    assert sent == {"id": image.id, "path": str(ws.blobs.path(image.blob)), "name": "0.png"}
