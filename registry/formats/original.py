"""Names of modules in the published checkpoints (sgm, MMDiT, BFL) against those of diffusers' classes.

kohya's files, ai-toolkit's and single checkpoints use the published names. Three things differ beside the
spelling: several of our linear layers may be one there (rows stacked), block numbers run through instead of
starting anew at every level, and the two halves of some modulation layers are exchanged.

Sources: Stability-AI/generative-models (sgm) openaimodel.py, Stability-AI/sd3.5 mmditx.py,
black-forest-labs/flux model.py, and diffusers/loaders/single_file_utils.py for what corresponds to what.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from registry.formats.names import TemplateIndex, filled

SGM_LAYERS = 2  # residual blocks a level in every published UNet; one more on the way up
SGM_LEVELS = 4


@dataclass(frozen=True)
class Place:
    """A module of the published checkpoint and what it holds.

    Args:
        path: Dotted, as in the checkpoint: "double_blocks.0.img_attn.qkv".
        modules: Dotted paths in diffusers' class, in the order of the rows.
        shares: Rows of each, in a common unit: (1, 1, 1, 4) for FLUX's q, k, v and MLP.
        halves: Its output is (shift, scale) there and (scale, shift) in diffusers, wherever it has just these
            two, that is, twice as many outputs as inputs.
    """

    path: str
    modules: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    halves: bool = False

    @property
    def name(self) -> str:
        """As kohya spells it, without prefix."""
        return self.path.replace(".", "_")

    @property
    def special(self) -> bool:
        """Whether its rows are not simply those of one module."""
        return len(self.modules) != 1 or self.halves


Row = Place  # the same with "#" for indices


class OriginalNames:
    """Both directions between published names and ours.

    Args:
        rows: Places with `#` for an index. The first row that has a module is the one that is written.
        aliases: Other names that only occur when reading.
    """

    def __init__(self, rows: Iterable[Row], aliases: Iterable[Row] = ()) -> None:
        self._by_path, self._by_name, self._by_module = (TemplateIndex[Row]() for _ in range(3))
        for row in rows:
            for module in row.modules:
                self._by_module.add(module, row)
            self._add(row)
        for row in aliases:
            self._add(row)

    def of_path(self, path: str) -> Place | None:
        """Place of a dotted path of the checkpoint."""
        return _filled(self._by_path.find(path))

    def of_name(self, name: str) -> Place | None:
        """Place of a path of the checkpoint with "_" for "."."""
        return _filled(self._by_name.find(name))

    def of_module(self, module: str) -> Place | None:
        """Place that holds a module of ours."""
        return _filled(self._by_module.find(module))

    def _add(self, row: Row) -> None:
        self._by_path.add(row.path, row)
        self._by_name.add(row.name, row)


def _filled(found: tuple[Row, tuple[str, ...]] | None) -> Place | None:
    if found is None:
        return None
    row, indices = found
    modules = tuple(filled(module, indices) for module in row.modules)
    return Place(filled(row.path, indices), modules, row.shares, row.halves)


_RESNET = {
    "in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut", "in_layers.0": "norm1", "out_layers.0": "norm2",
}  # fmt: skip
_ATTENTION = (
    "proj_in", "proj_out", "norm", *(f"transformer_blocks.#.norm{i}" for i in (1, 2, 3)),
    *(f"transformer_blocks.#.attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")),
    "transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2",
)  # fmt: skip


def _sgm() -> Iterator[Row]:
    """The UNet of SD1, SD2 and SDXL; `label_emb` is SDXL's."""
    ends = {
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2", "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
    }  # fmt: skip
    yield from (Row(theirs, (ours,)) for theirs, ours in ends.items())
    step = SGM_LAYERS + 1
    for level in range(SGM_LEVELS):
        for layer in range(SGM_LAYERS):
            number = 1 + step * level + layer
            yield from _sgm_block(f"input_blocks.{number}", f"down_blocks.{level}", layer)
        number = step * (level + 1)
        yield Row(f"input_blocks.{number}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",))
        for layer in range(step):
            yield from _sgm_block(f"output_blocks.{step * level + layer}", f"up_blocks.{level}", layer)
        last, upsampler = step * level + SGM_LAYERS, f"up_blocks.{level}.upsamplers.0.conv"
        yield Row(f"output_blocks.{last}.2.conv", (upsampler,))  # behind residual block and attention
        yield Row(f"output_blocks.{last}.1.conv", (upsampler,))  # at levels without attention
    yield from _sgm_inner("middle_block.0", "mid_block.resnets.0", _RESNET)
    yield from _sgm_inner("middle_block.1", "mid_block.attentions.0", {leaf: leaf for leaf in _ATTENTION})
    yield from _sgm_inner("middle_block.2", "mid_block.resnets.1", _RESNET)


def _sgm_block(theirs: str, ours: str, layer: int) -> Iterator[Row]:
    yield from _sgm_inner(f"{theirs}.0", f"{ours}.resnets.{layer}", _RESNET)
    yield from _sgm_inner(f"{theirs}.1", f"{ours}.attentions.{layer}", {leaf: leaf for leaf in _ATTENTION})


def _sgm_inner(theirs: str, ours: str, leaves: dict[str, str]) -> Iterator[Row]:
    yield from (Row(f"{theirs}.{leaf}", (f"{ours}.{own}",)) for leaf, own in leaves.items())


def _rows(theirs: str, ours: str, leaves: dict[str, str | tuple[str, ...]]) -> Iterator[Row]:
    for leaf, own in leaves.items():
        modules = (own,) if isinstance(own, str) else own
        yield Row(theirs + leaf, tuple(ours + module for module in modules), (1,) * len(modules))


def _mmdit() -> Iterator[Row]:
    """SD3 and SD3.5."""
    both: dict[str, str | tuple[str, ...]] = {
        "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "x_block.attn.proj": "attn.to_out.0",
        "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # medium
        "x_block.attn2.proj": "attn2.to_out.0",
        "x_block.mlp.fc1": "ff.net.0.proj",
        "x_block.mlp.fc2": "ff.net.2",
        "x_block.adaLN_modulation.1": "norm1.linear",
        "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "context_block.attn.proj": "attn.to_add_out",
        "context_block.mlp.fc1": "ff_context.net.0.proj",
        "context_block.mlp.fc2": "ff_context.net.2",
        "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k",
        "x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k",
        "context_block.attn.ln_q": "attn.norm_added_q", "context_block.attn.ln_k": "attn.norm_added_k",
    }  # fmt: skip
    yield from _rows("joint_blocks.#.", "transformer_blocks.#.", both)
    # Only the last block's has two outputs a channel (the others six), and only there they are exchanged.
    context = "joint_blocks.#.context_block.adaLN_modulation.1"
    yield Row(context, ("transformer_blocks.#.norm1_context.linear",), halves=True)
    ends: dict[str, str | tuple[str, ...]] = {
        "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2", "final_layer.linear": "proj_out",
    }  # fmt: skip
    yield from _rows("", "", ends)
    yield Row("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves=True)


def _bfl() -> Iterator[Row]:
    """FLUX.1."""
    double: dict[str, str | tuple[str, ...]] = {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": "attn.to_out.0",
        "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2", "img_mod.lin": "norm1.linear",
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": "attn.to_add_out", "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2", "txt_mod.lin": "norm1_context.linear",
        "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    }  # fmt: skip
    yield from _rows("double_blocks.#.", "transformer_blocks.#.", double)
    single = "single_transformer_blocks.#."
    fused = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    yield Row("single_blocks.#.linear1", tuple(single + leaf for leaf in fused), (1, 1, 1, 4))
    rest: dict[str, str | tuple[str, ...]] = {
        "linear2": "proj_out", "modulation.lin": "norm.linear", "norm.query_norm": "attn.norm_q",
        "norm.key_norm": "attn.norm_k",
    }  # fmt: skip
    yield from _rows("single_blocks.#.", single, rest)
    time, text, guidance = (f"time_text_embed.{n}_embedder.linear_" for n in ("timestep", "text", "guidance"))
    ends: dict[str, str | tuple[str, ...]] = {
        "img_in": "x_embedder", "txt_in": "context_embedder",
        "time_in.in_layer": f"{time}1", "time_in.out_layer": f"{time}2",
        "vector_in.in_layer": f"{text}1", "vector_in.out_layer": f"{text}2",
        "guidance_in.in_layer": f"{guidance}1", "guidance_in.out_layer": f"{guidance}2",
        "final_layer.linear": "proj_out",
    }  # fmt: skip
    yield from _rows("", "", ends)
    yield Row("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves=True)


def _xlabs() -> Iterator[Row]:
    """XLabs' adapters of FLUX.1 sit in attention processors; `processor.` is taken out before."""
    for number, leaves in ((1, ("to_q", "to_k", "to_v")), (2, ("add_q_proj", "add_k_proj", "add_v_proj"))):
        modules = tuple(f"transformer_blocks.#.attn.{leaf}" for leaf in leaves)
        yield Row(f"double_blocks.#.qkv_lora{number}", modules, (1, 1, 1))
    yield Row("double_blocks.#.proj_lora1", ("transformer_blocks.#.attn.to_out.0",))
    yield Row("double_blocks.#.proj_lora2", ("transformer_blocks.#.attn.to_add_out",))
    single = "single_transformer_blocks.#."
    yield Row("single_blocks.#.qkv", tuple(f"{single}attn.to_{leaf}" for leaf in "qkv"), (1, 1, 1))
    yield Row("single_blocks.#.proj", (f"{single}proj_out",))


SGM = OriginalNames(_sgm())
MMDIT = OriginalNames(_mmdit())
BFL = OriginalNames(_bfl(), _xlabs())
