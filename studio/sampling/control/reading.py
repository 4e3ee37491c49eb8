"""Maps that a model draws: depth and pose. Loads transformers; only the sampler process imports this."""

import colorsys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from registry.errors import BadInput
from studio.datasets.captioners.base import Place, find, load_model, load_part, moved

DETECTOR = "PekingU/rtdetr_v2_r18vd"  # finds the people whose poses are then read
DETECTOR_FOLDER = "detector"  # in a local folder of a pose model
PERSON, PERSON_SCORE = "person", 0.4
MOST_PEOPLE = 20
JOINT_SCORE = 0.3  # a joint that the model doubts is not drawn
DEPTH_MODELS = ("depth_anything", "dpt")
# COCO's joints in the order of OpenPose; its neck (1) is none of them: the middle of the shoulders.
_OPENPOSE = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_SHOULDERS = (5, 6)
_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_DIM = 0.6  # of a limb's colour, so that joints stand out

Point = tuple[float, float]


@torch.no_grad()
def depth(picture: Image.Image, model: str, device: torch.device) -> Image.Image:
    """White = near, black = far, over the whole range of the picture.

    Args:
        picture: RGB.
        model: Folder or hub id of Depth Anything or DPT.
        device: Where it runs.

    Raises:
        BadInput: it is another model, or not there.
    """
    net, processor = _depth_model(model, device)
    inputs = moved(processor(images=[picture], return_tensors="pt"), net)
    found = net(**inputs).predicted_depth.float()
    size = (picture.height, picture.width)
    values = F.interpolate(found[:, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    if getattr(net.config, "depth_estimation_type", "relative") == "metric":
        values = -values  # metres: far is large there
    values = values - values.min()
    values = values * 255 / values.max() if bool(values.any()) else values
    return Image.fromarray(values.round().clamp(0, 255).byte().cpu().numpy()).convert("RGB")


@torch.no_grad()
def pose(picture: Image.Image, model: str, device: torch.device) -> Image.Image:
    """Skeletons in OpenPose's colours on black.

    Args:
        picture: RGB.
        model: Folder or hub id of ViTPose over COCO's 17 joints. People are found by the model in its folder
            `detector`, where a local one has that; without it the whole picture is taken for one person.
        device: Where it runs.

    Raises:
        BadInput: it is another model, or not there.
    """
    net, processor = _pose_model(model, device)
    boxes = _people(picture, model, device)
    if not boxes:
        return Image.new("RGB", picture.size)
    inputs = moved(processor(images=[picture], boxes=[boxes], return_tensors="pt"), net)
    if getattr(net.config.backbone_config, "num_experts", 1) > 1:
        inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=net.device)
    outputs = net(**inputs)
    outputs.heatmaps = outputs.heatmaps.float()
    people = processor.post_process_pose_estimation(outputs, boxes=[boxes])[0]
    joints = [
        [
            (float(x), float(y)) if float(score) >= JOINT_SCORE else None
            for (x, y), score in zip(person["keypoints"], person["scores"], strict=True)
        ]
        for person in people
    ]
    return draw_skeletons(joints, picture.size)


def draw_skeletons(people: list[list[Point | None]], size: tuple[int, int]) -> Image.Image:
    """People as OpenPose draws them.

    Args:
        people: For each COCO's 17 joints in pixels; None = not seen.
        size: (width, height) of the picture.
    """
    drawn = Image.new("RGB", size)
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(8 * min(size) / 512))
    for joints in people:
        points = _as_openpose(joints)
        for number, (start, end) in enumerate(_LIMBS):
            first, second = points[start], points[end]
            if first is not None and second is not None:
                pen.line([first, second], fill=_colour(number, _DIM), width=width)
        for number, point in enumerate(points):
            if point is not None:
                x, y, r = *point, width / 2
                pen.ellipse([x - r, y - r, x + r, y + r], fill=_colour(number, 1.0))
    return drawn


def _as_openpose(joints: list[Point | None]) -> list[Point | None]:
    left, right = (joints[number] for number in _SHOULDERS)
    neck = None
    if left is not None and right is not None:
        neck = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return [neck if number is None else joints[number] for number in _OPENPOSE]


def _colour(number: int, brightness: float) -> tuple[int, int, int]:
    """18 hues around the circle, red first."""
    red, green, blue = (round(255 * brightness * part) for part in colorsys.hsv_to_rgb(number / 18, 1, 1))
    return red, green, blue


def _people(picture: Image.Image, model: str, device: torch.device) -> list[list[float]]:
    """Boxes (left, top, width, height) in pixels."""
    detector = _detector_of(model)
    if not detector:
        return [[0.0, 0.0, float(picture.width), float(picture.height)]]
    net, processor = _detection_model(detector, device)
    outputs = net(**moved(processor(images=[picture], return_tensors="pt"), net))
    size = torch.tensor([[picture.height, picture.width]])
    found = processor.post_process_object_detection(outputs, threshold=PERSON_SCORE, target_sizes=size)[0]
    boxes = [
        [float(left), float(top), float(right - left), float(bottom - top)]
        for (left, top, right, bottom), label in zip(found["boxes"], found["labels"], strict=True)
        if net.config.id2label.get(int(label)) == PERSON
    ]
    return boxes[:MOST_PEOPLE]


def _detector_of(model: str) -> str:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return DETECTOR
    return str(folder / DETECTOR_FOLDER) if (folder / DETECTOR_FOLDER).is_dir() else ""


@lru_cache(maxsize=1)
def _depth_model(model: str, device: torch.device) -> tuple[Any, Any]:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import AutoModelForDepthEstimation

    place = find(model)
    _check_type(place, DEPTH_MODELS, "give Depth Anything or DPT")
    return load_model(AutoModelForDepthEstimation, place, device), load_part(AutoImageProcessor, place)


@lru_cache(maxsize=1)
def _pose_model(model: str, device: torch.device) -> tuple[Any, Any]:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.vitpose.modeling_vitpose import VitPoseForPoseEstimation

    place = find(model)
    _check_type(place, ("vitpose",), "give ViTPose")
    net = load_model(VitPoseForPoseEstimation, place, device)
    joints = int(net.config.num_labels)
    if joints != len(_OPENPOSE) - 1:
        raise BadInput(place.name, f"finds {joints} joints", "give one over the 17 joints of COCO")
    return net, load_part(AutoImageProcessor, place)


@lru_cache(maxsize=1)
def _detection_model(model: str, device: torch.device) -> tuple[Any, Any]:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import AutoModelForObjectDetection

    place = find(model)
    return load_model(AutoModelForObjectDetection, place, device), load_part(AutoImageProcessor, place)


def _check_type(place: Place, wanted: tuple[str, ...], do: str) -> None:
    from registry.files import read_json

    found = str(read_json(place.file("config.json")).get("model_type", ""))
    if found not in wanted:
        raise BadInput(place.name, f"is a model of type {found or 'unknown'}", do)


def forget() -> None:
    """Give the memory of the models back."""
    for loaded in (_depth_model, _pose_model, _detection_model):
        loaded.cache_clear()
