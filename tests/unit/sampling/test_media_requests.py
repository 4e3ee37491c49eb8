"""What is asked of video, sound and 3D: recognised folders, values, refusals, and what files say."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from registry.errors import BadInput, StudioError
from registry.records import Base
from studio.bases import add_base, list_bases, list_media, list_motions, list_parts
from studio.cli import run
from studio.runs.checks import check_base
from studio.sampling.media.kinds import KINDS, MEDIA
from studio.sampling.media.requests import media_values
from studio.sampling.metadata.chunks import own_text
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.request import SampleRequest
from studio.sampling.submit import submit
from studio.workspace import Workspace

WEIGHTS = struct.pack("<Q", 2) + b"{}"  # a safetensors file without tensors
CONFIGS: dict[str, dict[str, Any]] = {
    "svd": {"unet": {"num_frames": 14}, "vae": {}, "image_encoder": {}},
    "stable-audio": {
        "transformer": {"sample_size": 1024},
        "vae": {"downsampling_ratios": [2, 4, 4, 8, 8], "sampling_rate": 44100},
    },
    "animatediff": {
        "unet": {"sample_size": 64}, "vae": {"block_out_channels": [1, 2, 3, 4]},
        "motion_adapter": {"motion_max_seq_length": 12},
    },
    "shap-e-image": {"prior": {}},
    "audioldm2": {"unet": {}},
}  # fmt: skip


def folder(root: Path, name: str, pipeline: str = "") -> Path:
    """A folder as far as catalog and checks look at it: configs, and weights that hold nothing."""
    index: dict[str, Any] = {"_class_name": pipeline or KINDS[name].pipelines[0]}
    place = root / name
    for component, config in CONFIGS[name].items():
        (place / component).mkdir(parents=True)
        (place / component / "config.json").write_text(json.dumps(config))
        (place / component / "model.safetensors").write_bytes(WEIGHTS)
        index[component] = ["diffusers", "AModel"]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def motion(root: Path, **config: Any) -> Path:
    place = root / "motion"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"_class_name": "MotionAdapter", **config}))
    (place / "diffusion_pytorch_model.safetensors").write_bytes(WEIGHTS)
    return place


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("requests")
    made = Workspace.open(root / "home")
    for name in CONFIGS:
        add_base(made, name, str(folder(root, name)))
    add_base(made, "motion", str(motion(root, block_out_channels=[5, 6, 7, 8])))
    Image.new("RGB", (32, 32)).save(root / "a.png")
    return made


def test_a_folder_is_known_by_its_index_and_stands_apart(ws: Workspace):
    found = {base.name: base for base in list_media(ws)}
    assert set(found) == set(CONFIGS)
    for name, base in found.items():
        assert (base.family, base.part, base.kind) == (name, KINDS[name].medium, "folder")
    (moving,) = list_motions(ws)
    assert (moving.family, moving.part) == ("sd15", "motion")
    assert not {base.name for base in (*list_bases(ws), *list_parts(ws))} & {*found, "motion"}


@pytest.mark.parametrize(("name", "says"), [("svd", "is a video base"), ("motion", "is a motion adapter")])
def test_training_refuses_it_in_a_line(ws: Workspace, name: str, says: str):
    with pytest.raises(BadInput, match=f"base {name}: {says}, which .*choose a base for pictures"):
        check_base(ws, ws.catalog.get(Base, name))


def spoiled(root: Path, how: str) -> Path:
    """A folder that must not be taken."""
    place = folder(root, "svd")
    index = json.loads((place / "model_index.json").read_text())
    if how == "code":
        (place / "unet" / "model.py").write_text("")
    elif how == "foreign":
        index["unet"] = ["subprocess", "Popen"]
    elif how == "outside":
        index["../up"] = ["diffusers", "AModel"]
    elif how == "pair":
        index["unet"] = ["diffusers"]
    elif how == "pickle":
        (place / "unet" / "model.safetensors").rename(place / "unet" / "model.bin")
    elif how == "cut":
        (place / "unet" / "model.safetensors").write_bytes(WEIGHTS[:5])
    elif how == "none":
        (place / "vae" / "model.safetensors").unlink()
    else:
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("code", r"holds code \(unet/model.py\)"),
        ("foreign", "wants subprocess.Popen as its unet, which no Stable Video Diffusion has"),
        ("outside", "is damaged at '../up'"),
        ("pair", "is damaged at unet"),
        ("pickle", r"has the weights of its unet as a pickle only \(unet/model.bin\)"),
        ("cut", "model.safetensors"),
        ("none", r"has no weights of its vae \(\*.safetensors\)"),
        ("words", "has none of tokenizer.json"),
    ],
)
def test_a_bad_folder_is_refused_in_a_line(ws: Workspace, tmp_path: Path, how: str, says: str):
    with pytest.raises(StudioError, match=says) as refused:
        add_base(ws, "bad", str(spoiled(tmp_path, how)))
    assert "\n" not in str(refused.value)
    assert ws.catalog.find(Base, "bad") is None


def test_a_motion_adapter_of_another_family_is_refused(ws: Workspace, tmp_path: Path):
    with pytest.raises(BadInput, match="is a motion adapter for SDXL"):
        add_base(ws, "bad", str(motion(tmp_path, block_out_channels=[1, 2, 3])))
    shutil.rmtree(tmp_path / "motion")
    with pytest.raises(BadInput, match=r"is a motion adapter for Stable Diffusion 1\.5, not sdxl"):
        add_base(ws, "bad", str(motion(tmp_path)), family="sdxl")


def test_what_is_left_out_is_the_kinds_own(ws: Workspace):
    """The limits of a base lower what is usual."""
    made = submit(ws, asked(ws, "animatediff", prompt="a cat"))
    request = SampleRequest.model_validate(made.request)
    assert request.settings == {"frames": 12, "fps": 8}
    assert (request.kind, request.width, request.steps, request.cfg) == ("animatediff", 512, 25, 7.5)
    made = submit(ws, asked(ws, "svd", image=str(ws.home.parent / "a.png")))
    assert made.request["settings"] == {"fps": 7, "motion": 127, "noise": 0.02}
    assert (made.request["width"], made.request["height"]) == (1024, 576)
    assert made.request["image"].startswith(f"samples/{made.id}/image")


def asked(ws: Workspace, name: str, **given: Any) -> SampleRequest:
    return SampleRequest(**media_values(ws, ws.catalog.get(Base, name), given))


TALK = {"prompt": "talk"}
IMAGE = {"image": "/tmp/gone.png"}


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("svd", {}, "image: is missing: Stable Video Diffusion starts from a picture"),
        ("svd", IMAGE, "gone.png"),
        ("svd", IMAGE | TALK, "prompt: does not go with Stable Video Diffusion"),
        ("svd", IMAGE | {"width": 72}, "size 72x576: .* sides are multiples of 64"),
        ("svd", IMAGE | {"settings": {"frame": 3}}, "setting 'frame': .* did you mean frames"),
        ("svd", IMAGE | {"settings": {"frames": 2.5}}, "frames 2.5: is no whole number"),
        ("svd", IMAGE | {"settings": {"fps": 0}}, "fps 0: is out of bounds. use fps 1 to 60"),
        ("svd", IMAGE | {"width": 4096, "height": 4096, "settings": {"frames": 100}}, "too much for 100"),
        ("svd", IMAGE | {"scheduler": "Euler"}, "scheduler: does not go with"),
        ("svd", IMAGE | {"memory": "slicing"}, "memory slicing: .* use auto, fast, model, sequential"),
        ("stable-audio", {}, "prompt: is empty. say what the sound is to be of"),
        ("stable-audio", TALK | {"settings": {"seconds": 60}}, "than base stable-audio .* at most 47.55"),
        ("animatediff", TALK | {"settings": {"frames": 16}}, "frames 16: is more than .* at most 12"),
        ("shap-e-image", IMAGE | {"settings": {"side": 48}}, "side 48: is no multiple of 32"),
        ("audioldm2", TALK | {"mask": "a.png"}, "mask: does not go with AudioLDM 2"),
        ("audioldm2", TALK | {"kind": "svd"}, "kind 'svd': is not what base audioldm2 makes"),
        ("audioldm2", TALK | {"motion": "motion"}, "moves bases of .*, which audioldm2 is not"),
        ("pocket", TALK | {"settings": {"fps": 3}}, "setting 'fps': is for video, sound and 3D"),
        ("pocket", TALK | {"motion": "motion"}, "has layers of 5, 6, 7, 8 channels, base pocket of "),
        ("pocket", TALK | {"motion": "svd"}, "motion svd: is no motion adapter"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_refused_in_a_line(ws: Workspace, name: str, given: dict[str, Any], says: str):
    base = ws.catalog.get(Base, name)
    with pytest.raises(StudioError, match=says) as refused:
        submit(ws, asked(ws, name, **given) if base.part else SampleRequest(base=base.id, **given))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--base", "svd"], "error: image: is missing"),
        (["--base", "svd", "--adapter", "ink"], "error: --adapter: does not go with Stable Video Diffusion"),
        (["--base", "svd", "--set", "fps=x"], "error: --set 'fps=x': is not NAME=NUMBER"),
        (["--base", "svd", "--set", "fps=nan", "--image", "a"], "error: settings.fps"),
        (["--base", "pocket", "--prompt", "x", "--set", "fps=3"], "error: --set fps=3: is not for pictures"),
        (["--base", "motion", "--prompt", "x"], "error: base motion: is a motion adapter"),
        (["--base", "svd", "--motion", "motion"], "moves bases of Stable Diffusion 1.5, which svd is not"),
    ],
)
def test_the_command_line_refuses_in_a_line(
    ws: Workspace, tmp_path: Path, capsys: Any, given: list[str], says: str
):
    assert run(["--home", str(ws.home), "sample", "--out", str(tmp_path), *given]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_base_says_what_it_makes(ws: Workspace, capsys: Any):
    assert run(["--home", str(ws.home), "bases", "list"]) == 0
    assert run(["--home", str(ws.home), "bases", "show", "audioldm2"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (*MEDIA, "motion", "sound (AudioLDM 2)", "seconds 0.01 to 60"))


def test_a_damaged_comment_is_none(tmp_path: Path):
    for data in (b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff", b"ply\n", b"ply\ncomment x\n",
                 b"RIFF\0\0\0\0WAVELIST\x10\0\0\0INFOICMT\xff\xff\xff\xff"):  # fmt: skip
        (tmp_path / "x").write_bytes(data)
        assert own_text(tmp_path / "x") == ""
        assert read_metadata(tmp_path / "x").source == ""
    (tmp_path / "x").write_bytes(b"something else")
    assert own_text(tmp_path / "x") is None


def test_every_kind_has_a_maker_and_a_writer():
    from studio.sampling.media.making import MAKERS
    from studio.sampling.media.writing import WRITERS

    assert set(MAKERS) == set(WRITERS) == set(MEDIA) == {kind.medium for kind in KINDS.values()}
    for name, kind in KINDS.items():
        for item in kind.settings:
            assert item.default is None or item.least <= item.default <= item.most, (name, item.name)
        assert kind.takes <= set(SampleRequest.model_fields)


def test_the_documentation_has_every_setting():
    text = (Path(__file__).parents[3] / "docs" / "sampling.md").read_text(encoding="utf-8")
    section = text[text.index("## Video, sound and 3D") :]
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in section
        assert all(f"`{item.name}`" in section for item in kind.settings)
