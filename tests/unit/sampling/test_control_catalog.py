"""ControlNets in the catalog: found out what they are, chosen for a request, never taken for a base."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from registry.errors import BadInput, NotFound
from registry.records import Base
from studio.bases import add_base, check_available, detect_base, list_bases, list_parts, remove_base
from studio.runs.checks import check_base
from studio.sampling.control.choosing import choose_net, mode_of
from studio.sampling.control.nets import Nets, load_net
from studio.sampling.request_control import ControlChoice
from studio.sampling.task import TaskControl
from studio.workspace import Workspace
from tests.support import controls
from tests.support.bases import save_base
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family

pytestmark = pytest.mark.filterwarnings("ignore")


def family_of(name: str, folder: Path) -> Family:
    save_base(name, folder)
    cls = FAMILIES[name].load_class()
    return cls(BaseFiles(str(folder)), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("controls") / "home")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of("sd15", tmp_path_factory.mktemp("base") / "sd15")


@pytest.fixture(scope="module")
def saved(sd15: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(name: str, model: Any = None) -> Path:
        folder = tmp_path_factory.mktemp("nets") / name
        (model or controls.controlnet(sd15.denoiser)).save_pretrained(folder)
        return folder

    return make


def choice(kind: str = "canny", **values: Any) -> ControlChoice:
    return ControlChoice(**{"kind": kind, "image": "a.png", **values})


def task_of(base: Base, path: Path) -> TaskControl:
    return TaskControl(id=base.id, name=base.name, location=str(path), kind=base.kind, map_kind="canny",
                       weight_hash=base.weight_hash)  # fmt: skip


CASES = {
    "canny-sd15": (lambda: controls.controlnet(_unet(768)), "sd15", "canny", "controlnet"),
    "canny-sd21": (lambda: controls.controlnet(_unet(1024)), "sd21", "canny", "controlnet"),
    "my-own": (lambda: controls.controlnet(_unet(768)), "sd15", "any", "controlnet"),
    "controlnet-union": (lambda: controls.controlnet(_xl(), union=True), "sdxl", "union", "controlnet"),
    "depth-xl": (lambda: controls.controlnet(_xl()), "sdxl", "depth", "controlnet"),
    "sd3.5-blur": (controls.sd3_controlnet, "sd35", "blur", "controlnet"),
    "flux-pose": (controls.flux_controlnet, "flux1", "pose", "controlnet"),
    "sketch-adapter": (controls.t2i_adapter, "sd15", "scribble", "t2i-adapter"),
}


def _unet(width: int) -> Any:
    from trainers.families import toy

    return toy.unet(cross_attention_dim=width, attention_head_dim=2)


def _xl() -> Any:
    return FAMILIES["sdxl"].load_class().tiny()["unet"]


@pytest.mark.parametrize("name", CASES)
def test_what_a_folder_is(name: str, saved: Callable[..., Path]):
    make, family, variant, part = CASES[name]
    facts = detect_base(str(saved(name, make())))
    assert (facts.family, facts.variant, facts.part, facts.kind) == (family, variant, part, "folder")


def test_a_toy_goes_by_what_the_person_says(saved: Callable[..., Path]):
    folder = saved("canny")
    assert detect_base(str(folder)).notes == ("text width 32 names no family: taken as Stable Diffusion 1.5",)
    assert detect_base(str(folder), family="sd21").family == "sd21"
    with pytest.raises(BadInput, match=r"is for Stable Diffusion 1.5, not FLUX.1\. leave the family"):
        detect_base(str(folder), family="flux1")
    with pytest.raises(BadInput, match="family 'sd9': is not known"):
        detect_base(str(folder), family="sd9")


def test_it_stands_beside_the_bases_and_is_none(ws: Workspace, saved: Callable[..., Path]):
    folder = saved("control_canny")
    net = add_base(ws, "canny net", str(folder))
    assert (net.part, net.variant, net.family, bool(net.weight_hash)) == ("controlnet", "canny", "sd15", True)
    assert {base.name for base in list_bases(ws)} == {"pocket", "pocket-xl", "pocket-sd35", "pocket-flux"}
    assert [base.name for base in list_parts(ws)] == ["canny net"]
    assert list_parts(ws, "sdxl") == []
    assert check_available(ws, net) == folder
    with pytest.raises(
        BadInput, match=r"^base canny net: is a ControlNet, which steers a base and is none\."
    ):
        check_base(ws, net)
    assert add_base(ws, "as lines", str(folder), control="lineart").variant == "lineart"
    with pytest.raises(BadInput, match=r"^control 'cany': is no kind of control\. use one of canny, "):
        add_base(ws, "typo", str(folder), control="cany")
    for name in ("canny net", "as lines"):
        remove_base(ws, name)
    assert list_parts(ws) == []


def test_folders_that_cannot_be_used(saved: Callable[..., Path]):
    folder = saved("depth")
    code = folder / "evil.py"
    code.write_text("print()")
    with pytest.raises(BadInput, match=r"holds code \(evil.py\)"):
        detect_base(str(folder))
    code.unlink()
    weights = next(folder.glob("*.safetensors"))
    weights.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(BadInput, match=r"has its weights as a pickle only \(diffusion_pytorch_model.bin\)"):
        detect_base(str(folder))
    (folder / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match="has no weights"):
        detect_base(str(folder))


def test_single_files_load_with_the_bases_structure(ws: Workspace, sd15: Family, tmp_path: Path):
    """In diffusers' names, also with a hint of other widths."""
    model = controls.controlnet(sd15.denoiser, conditioning_embedding_out_channels=(4, 6, 10))
    file = tmp_path / "net_softedge.safetensors"
    save_file(model.state_dict(), file)
    net = add_base(ws, "file net", str(file), family="sd15")
    assert (net.kind, net.part, net.variant) == ("file", "controlnet", "softedge")
    loaded = load_net(task_of(net, file), sd15)
    assert loaded.config.conditioning_embedding_out_channels == (4, 6, 10)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    remove_base(ws, "file net")


def test_single_files_in_original_names(sd15: Family, tmp_path: Path):
    model = controls.controlnet(sd15.denoiser, conditioning_embedding_out_channels=(16, 32, 96, 256))
    file = tmp_path / "control_canny.safetensors"
    save_file({f"control_model.{original(key)}": value for key, value in model.state_dict().items()}, file)
    assert detect_base(str(file), family="sd15").variant == "canny"
    task = TaskControl(id="n", name="n", location=str(file), kind="file", map_kind="canny")
    loaded = load_net(task, sd15).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


RENAMED = (
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^controlnet_cond_embedding\.conv_in", lambda _: "input_hint_block.0"),
    (r"^controlnet_cond_embedding\.conv_out", lambda _: "input_hint_block.14"),
    (r"^controlnet_cond_embedding\.blocks\.(\d)", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}"),
    (r"^conv_in", lambda _: "input_blocks.0.0"),
    (r"^controlnet_down_blocks\.(\d)", lambda m: f"zero_convs.{m[1]}.0"),
    (r"^controlnet_mid_block", lambda _: "middle_block_out.0"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", lambda _: "middle_block.1"),
    # One ResNet block a level, then the halving.
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op"),
    (r"\bnorm1(?=\.(weight|bias)$)(?<!blocks.0.norm1)", lambda _: "in_layers.0"),
    (r"\bconv1\b", lambda _: "in_layers.2"),
    (r"\bnorm2(?=\.(weight|bias)$)(?<!blocks.0.norm2)", lambda _: "out_layers.0"),
    (r"\bconv2\b", lambda _: "out_layers.3"),
    (r"\btime_emb_proj\b", lambda _: "emb_layers.1"),
    (r"\bconv_shortcut\b", lambda _: "skip_connection"),
)


def original(key: str) -> str:
    """A tensor's name in the first published files."""
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key


def test_a_file_of_another_structure_is_one_line(tmp_path: Path, sd15: Family):
    file = tmp_path / "canny.safetensors"
    save_file(controls.controlnet(_unet(768)).state_dict(), file)
    task = TaskControl(id="n", name="n", location=str(file), kind="file", map_kind="canny")
    with pytest.raises(BadInput, match=r"^canny.safetensors: cannot be loaded \(RuntimeError: Error"):
        load_net(task, sd15)


def test_weights_without_their_config_are_told(tmp_path: Path):
    file = tmp_path / "flux.safetensors"
    save_file(controls.flux_controlnet().state_dict(), file)
    with pytest.raises(BadInput, match=r"without the config.json .* give its folder"):
        detect_base(str(file))


def test_the_only_one_of_a_kind_is_chosen(ws: Workspace, saved: Callable[..., Path]):
    pocket = ws.catalog.get(Base, "pocket")
    with pytest.raises(
        BadInput, match=r"^control canny: has no network for Stable Diffusion 1.5 in the catalog"
    ):
        choose_net(ws, pocket, choice())
    canny = add_base(ws, "canny", str(saved("canny")))
    depth = add_base(ws, "depth", str(saved("depth")))
    assert choose_net(ws, pocket, choice("canny")).id == canny.id
    assert choose_net(ws, pocket, choice("depth")).id == depth.id
    assert choose_net(ws, pocket, choice("canny", model="depth")).id == depth.id, "by name, whatever it reads"
    add_base(ws, "canny 2", str(saved("canny-two")))
    with pytest.raises(BadInput, match=r"^control canny: is read by 2 networks\. name one of canny, canny 2"):
        choose_net(ws, pocket, choice("canny"))
    with pytest.raises(BadInput, match=r"name one of canny, depth, canny 2, or add one"):
        choose_net(ws, pocket, choice("pose"))
    with pytest.raises(BadInput, match="base pocket: is no ControlNet"):
        choose_net(ws, pocket, choice(model="pocket"))
    flux = add_base(ws, "flux", str(saved("flux-canny", controls.flux_controlnet())))
    with pytest.raises(
        BadInput, match=r"^ControlNet flux: is for FLUX.1, base pocket is Stable Diffusion 1.5"
    ):
        choose_net(ws, pocket, choice(model=flux.id))
    with pytest.raises(NotFound):
        choose_net(ws, pocket, choice(model="nothing"))
    for net in list_parts(ws):
        remove_base(ws, net.id)


def test_unions_read_their_kinds(ws: Workspace, saved: Callable[..., Path]):
    model = controls.controlnet(_xl(), union=True)
    net = add_base(ws, "all in one", str(saved("union-promax", model)))
    base = Base(name="xl", family="sdxl", location="x", kind="folder")
    assert choose_net(ws, base, choice("canny")).id == net.id
    assert [mode_of(net, kind) for kind in ("pose", "depth", "scribble", "canny", "tile")] == [0, 1, 2, 3, 6]
    with pytest.raises(BadInput, match="is nothing that union networks of Stable Diffusion XL read"):
        choose_net(ws, base, choice("gray", model="all in one"))
    remove_base(ws, net.id)


def test_files_that_are_gone(ws: Workspace, saved: Callable[..., Path]):
    folder = saved("canny-gone")
    net = add_base(ws, "gone", str(folder))
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(NotFound, match=r"^ControlNet gone: is no longer at "):
        choose_net(ws, ws.catalog.get(Base, "pocket"), choice("canny"))
    remove_base(ws, net.id)


def test_inpaint_maps_are_for_unets(ws: Workspace):
    with pytest.raises(BadInput, match=r"^control inpaint: is for bases with a UNet"):
        choose_net(ws, Base(name="f", family="flux1", location="x", kind="folder"), choice("inpaint"))


def test_networks_are_loaded_once_and_few_are_kept(sd15: Family, saved: Callable[..., Path]):
    nets = Nets()
    tasks = [
        TaskControl(
            id=str(n), name=str(n), location=str(saved(f"canny-{n}")), kind="folder", map_kind="canny"
        )
        for n in range(4)
    ]
    first = nets.take(tasks[0], sd15)
    assert nets.take(tasks[0], sd15).model is first.model
    for task in tasks[1:]:
        nets.take(task, sd15)
    nets.trim()
    assert nets.take(tasks[3], sd15).model is nets.take(tasks[3], sd15).model
    assert nets.take(tasks[0], sd15).model is not first.model, "the oldest was forgotten"


def test_a_choice_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="start must be before end"):
        choice(start=0.5, end=0.5)
    with pytest.raises(ValueError, match="should match pattern"):
        choice("cany")
    assert json.loads(choice().model_dump_json())["preprocess"] is True
