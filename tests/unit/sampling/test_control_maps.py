"""Maps of pictures: edges by definition, plain ones, and those of models at toy size."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from registry.errors import BadInput
from studio.sampling.control import edges, plain
from studio.sampling.control.kinds import KINDS, kind_in_name, kinds_help
from studio.sampling.control.maps import make_map
from tests.support.controls import map_picture

CPU = torch.device("cpu")
OFFLINE = [name for name, kind in KINDS.items() if not kind.model]


def square(side: int = 64, inner: int = 24) -> Image.Image:
    """White on black."""
    picture = Image.new("RGB", (side, side))
    start = (side - inner) // 2
    picture.paste((255, 255, 255), (start, start, start + inner, start + inner))
    return picture


def values(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    pixels = np.asarray(picture)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("kind", OFFLINE)
def test_each_kind_gives_a_map_of_the_pictures_size(kind: str):
    picture = map_picture((40, 24))
    drawn = make_map(kind, picture, device=CPU)
    assert (drawn.mode, drawn.size) == ("RGB", (40, 24))
    assert np.asarray(drawn).std() > 0


def test_canny_draws_one_thin_line_around_a_square():
    found = values(edges.canny(square())) > 0
    assert set(np.unique(values(edges.canny(square())))) == {0, 255}
    rows = found[32]
    assert rows.sum() == 2, "one pixel on the left, one on the right"
    left, right = np.flatnonzero(rows)
    assert left in (19, 20)
    assert right in (43, 44)
    assert found[:, 32].sum() == 2
    assert not found[24:40, 24:40].any()
    assert not found[:15].any()


def test_canny_follows_weak_edges_only_from_strong_ones():
    """A ramp of contrast: above `high` it starts, down to `low` it goes on; a weak edge alone is nothing."""
    contrast = np.linspace(80, 0, 64).astype(np.uint8)
    half = np.zeros((64, 32), dtype=np.uint8)
    fading = np.concatenate([half, np.repeat(contrast[:, None], 32, axis=1)], axis=1)
    drawn = values(edges.canny(Image.fromarray(fading).convert("RGB")))
    seen = np.flatnonzero(drawn.any(axis=1))
    # |dx| of a step of c is 4 c: strong down to c = 50, kept down to c = 25, less what |dy| of the ramp adds.
    assert 22 <= contrast[seen.max()] <= 26
    weak = np.concatenate([half, np.full((64, 32), 40, dtype=np.uint8)], axis=1)
    assert not values(edges.canny(Image.fromarray(weak).convert("RGB"))).any()


def test_canny_sees_edges_of_colour_alone():
    """Red beside blue of the same brightness."""
    picture = Image.new("RGB", (32, 32), (200, 0, 0))
    picture.paste((0, 0, 200), (16, 0, 32, 32))
    assert values(edges.canny(picture))[16].any()


def test_canny_by_definition():
    """Against loops over pixels, on noise, where every case of a ridge occurs."""
    picture = map_picture((23, 17), seed=3)
    np.testing.assert_array_equal(values(edges.canny(picture, low=300, high=600)), slow_canny(picture))


def slow_canny(picture: Image.Image, low: float = 300, high: float = 600) -> np.ndarray:
    pixels = np.asarray(picture).astype(int)
    height, width, _ = pixels.shape

    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])[..., None]
    gradient = np.zeros((height, width, 2))
    for r, c in np.ndindex(height, width):
        patch = padded[r : r + 3, c : c + 3]
        dx, dy = (patch * sobel).sum((0, 1)), (patch * sobel.swapaxes(0, 1)).sum((0, 1))
        best = np.argmax(np.abs(dx) + np.abs(dy))
        gradient[r, c] = dx[best], dy[best]
    length = np.abs(gradient).sum(axis=2)

    def long(row: int, column: int) -> float:
        return length[row, column] if 0 <= row < height and 0 <= column < width else 0.0

    ridge = np.zeros((height, width), dtype=bool)
    for r, c in np.ndindex(height, width):
        dx, dy = gradient[r, c]
        angle, here = np.degrees(np.arctan2(abs(dy), abs(dx))), length[r, c]
        if angle < 22.5:
            ridge[r, c] = here > long(r, c - 1) and here >= long(r, c + 1)
        elif angle > 67.5:
            ridge[r, c] = here > long(r - 1, c) and here >= long(r + 1, c)
        else:
            side = 1 if dx * dy >= 0 else -1
            ridge[r, c] = here > long(r - 1, c - side) and here > long(r + 1, c + side)
    ridge &= length > low
    kept = ridge & (length > high)
    grown = True
    while grown:
        near = np.zeros_like(kept)
        for r, c in np.argwhere(kept):
            near[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2] = True
        grown = bool((near & ridge & ~kept).any())
        kept |= near & ridge
    return kept * 255


def test_lines_of_a_drawing_are_white_on_black():
    drawing = Image.new("RGB", (64, 64), (255, 255, 255))
    ImageDraw.Draw(drawing).line([(32, 4), (32, 60)], fill=(0, 0, 0), width=2)
    drawn = values(edges.lineart(drawing))
    assert drawn[32][np.asarray(drawing)[32, :, 0] == 0].min() > 200
    assert drawn[32, :20].max() < 20
    assert not values(edges.lineart(Image.new("RGB", (32, 32), (90, 90, 90)))).any(), (
        "an even picture has none"
    )


def test_soft_edges_fall_off():
    drawn = values(edges.softedge(square())).astype(int)
    assert drawn[32, 20] > 150
    assert 0 < drawn[32, 23] < drawn[32, 21]
    assert drawn[32, 32] == 0


def test_scribbles_are_thick():
    drawn = values(edges.scribble(square(256, 96))) > 0
    left = np.flatnonzero(drawn[128, :128])
    assert 3 <= len(left) <= 8
    assert abs(left.mean() - 80) < 4


def test_grey_and_blurred():
    picture = map_picture((64, 64))
    assert values(plain.gray(picture)).std() > 0
    assert np.asarray(plain.blur(picture)).std() < np.asarray(picture).std() / 2
    assert plain.same(picture) is picture


def test_what_a_network_reads_is_in_its_name():
    names = {
        "control_v11p_sd15_canny_fp16": "canny", "controlnet-depth-sdxl-1.0": "depth",
        "control_v11p_sd15_openpose": "pose", "thibaud/controlnet-openpose-sdxl-1.0": "pose",
        "control_v11p_sd15s2_lineart_anime": "lineart", "control_v11f1e_sd15_tile": "tile",
        "InstantX/FLUX.1-dev-Controlnet-Union": "union", "controlnet-union-sdxl-1.0-promax": "union",
        "t2i-adapter-sketch-sdxl-1.0": "scribble", "control_v11p_sd15_softedge": "softedge",
        "stabilityai/stable-diffusion-3.5-large-controlnet-blur": "blur", "my-own-net": "any",
        "control_v11p_sd15_inpaint": "inpaint",
    }  # fmt: skip
    assert {name: kind_in_name(name) for name in names} == names


def test_the_table_costs_no_torch():
    code = "import sys, studio.sampling.control.choosing, studio.sampling.request_control; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert kinds_help().startswith("canny, lineart")


# -- models


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessorPil,
    )

    def make(**config: Any) -> str:
        torch.manual_seed(0)
        backbone = Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14, mlp_ratio=2, out_indices=[1, 2], apply_layernorm=True, reshape_hidden_states=False,
        )  # fmt: skip
        model = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=backbone, reassemble_hidden_size=16, reassemble_factors=[2, 1],
                neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=4, **config,
            )
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("depth")
        model.save_pretrained(folder)
        DPTImageProcessorPil(
            size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
        ).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.filterwarnings("ignore")
def test_depth_is_the_models_over_the_whole_range(depth_folder: Callable[..., str]):
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder, picture = depth_folder(), map_picture((40, 24))
    drawn = values(make_map("depth", picture, model=folder, device=CPU)).astype(float)
    assert (drawn.min(), drawn.max()) == (0, 255)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=picture, return_tensors="pt"))
    wanted = processor.post_process_depth_estimation(outputs, target_sizes=[(24, 40)])[0]["predicted_depth"]
    wanted = ((wanted - wanted.min()) / (wanted.max() - wanted.min()) * 255).numpy()
    assert np.abs(drawn - wanted).max() <= 0.51


@pytest.mark.filterwarnings("ignore")
def test_metres_are_turned_round(depth_folder: Callable[..., str]):
    """A model that gives metres: near is small there, and white all the same."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder, picture = depth_folder(depth_estimation_type="metric", max_depth=20), map_picture((40, 24))
    drawn = values(make_map("depth", picture, model=folder, device=CPU)).astype(float)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(**AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt"))
    metres = torch.nn.functional.interpolate(found.predicted_depth[None], size=(24, 40), mode="bicubic")[0, 0]
    assert np.corrcoef(drawn.ravel(), metres.numpy().ravel())[0, 1] < -0.99


@pytest.fixture(scope="module")
def pose_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    from transformers import (
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessorPil,
    )

    def make(joints: int = 17) -> Path:
        torch.manual_seed(0)
        backbone = VitPoseBackboneConfig(
            image_size=[32, 32], patch_size=[8, 8], hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, mlp_ratio=2, out_indices=[1],
        )  # fmt: skip
        model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=joints))
        folder = tmp_path_factory.mktemp("pose")
        model.save_pretrained(folder)
        VitPoseImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return make


@pytest.mark.filterwarnings("ignore")
def test_pose_runs_on_the_whole_picture_without_a_detector(pose_folder, monkeypatch: pytest.MonkeyPatch):
    from studio.sampling.control import reading

    monkeypatch.setattr(reading, "JOINT_SCORE", -1e9)  # untrained: it is sure of nothing
    drawn = np.asarray(make_map("pose", map_picture((48, 64)), model=str(pose_folder()), device=CPU))
    assert drawn.shape == (64, 48, 3)
    assert drawn.any()
    monkeypatch.setattr(reading, "JOINT_SCORE", 1e9)
    assert not np.asarray(make_map("pose", map_picture((48, 64)), model=str(pose_folder()), device=CPU)).any()


@pytest.mark.filterwarnings("ignore")
def test_a_pose_model_of_other_joints_is_refused(pose_folder):
    with pytest.raises(BadInput, match=r"finds 5 joints\. give one over the 17 joints of COCO"):
        make_map("pose", map_picture((48, 64)), model=str(pose_folder(5)), device=CPU)


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_another_kind_is_one_line(pose_folder, tmp_path: Path):
    with pytest.raises(BadInput, match=r"is a model of type vitpose\. give Depth Anything or DPT"):
        make_map("depth", map_picture((48, 64)), model=str(pose_folder()), device=CPU)
    with pytest.raises(BadInput, match="is neither a folder nor a hub id"):
        make_map("depth", map_picture((48, 64)), model=str(tmp_path / "nothing"), device=CPU)


def test_skeletons_as_openpose_draws_them():
    from studio.sampling.control.reading import draw_skeletons

    joints: list[tuple[float, float] | None] = [None] * 17
    joints[5], joints[6] = (300.0, 100.0), (200.0, 100.0)  # left and right shoulder
    drawn = np.asarray(draw_skeletons([joints], (512, 512)))
    assert tuple(drawn[100, 250]) == (255, 85, 0), "the neck is between the shoulders"
    assert tuple(drawn[100, 200]) == (255, 170, 0), "the right shoulder"
    assert tuple(drawn[100, 300]) == (85, 255, 0), "the left one"
    assert tuple(drawn[100, 225]) == (153, 0, 0), "from the neck to the right: dim red"
    assert tuple(drawn[100, 275]) == (153, 51, 0)
    assert not drawn[300:].any()
    assert not np.asarray(draw_skeletons([[None] * 17], (64, 64))).any()
