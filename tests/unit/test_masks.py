"""Masks: same place as the pixels, exact areas, the loss they make, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from registry.errors import BadInput, StudioError
from tests.support.runs import resume, train, write_run
from trainers.data import BatchSource
from trainers.loop import error
from trainers.masks import MaskCache, focus_of, read_mask
from trainers.placing import place_items, views
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem, RunDir, checkpoint_step


def source(folder, mask, width=None, height=None, name="a.png", **more):
    """A picture of `mask`'s size (or another), with the mask beside it."""
    path = ""
    if mask is not None:
        path = str(folder / f"{name}.mask.png")
        Image.fromarray(mask).save(path)
        height, width = height or mask.shape[0], width or mask.shape[1]
    return ManifestItem(
        image=name, pixel_hash=name, width=width, height=height, caption="", name=name, mask=path, **more
    )


def placed(one, sizes=(64,), **data):
    return place_items([one], sizes=sizes, step=8, data=DataSection(**data), seed=0)[0][0]


def cache(folder, floor=0.0):
    return MaskCache(folder / "cache", Path, 8, floor)


def test_cells_are_the_mean_of_the_pixels_below_them(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    item = placed(source(tmp_path, mask))
    found = read_mask(Path(item.source.mask), item, 8)
    wanted = torch.from_numpy(mask / 255).float().reshape(8, 8, 8, 8).mean((1, 3))
    assert found.shape == (1, 8, 8)
    assert torch.allclose(found[0], wanted, atol=1e-6)


@pytest.mark.parametrize("crop", ["center", "top", "random"])
def test_a_mask_is_cut_like_its_picture(tmp_path, crop):
    """A ramp as mask: the cell's value tells the column it came from."""
    ramp = np.repeat(np.arange(0, 256, dtype=np.uint8)[None], 128, axis=0)
    item = placed(source(tmp_path, ramp), crop=crop, buckets=False)
    for view in views(item):
        found = read_mask(Path(view.source.mask), view, 8)[0, 0] * 255
        left = view.geometry.box[0]
        width = 64 / view.geometry.scale / 8
        assert torch.allclose(found, left + width * torch.arange(8) + width / 2 - 0.5, atol=0.5)


def test_a_mask_of_another_size_covers_the_whole_picture(tmp_path):
    half = np.zeros((32, 32), np.uint8)
    half[:, 16:] = 255
    item = placed(source(tmp_path, half, width=128, height=128))
    assert read_mask(Path(item.source.mask), item, 8)[0, 0].tolist() == [0] * 4 + [1] * 4


def test_weights_have_mean_one_a_floor_and_the_mirror(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :16] = 255
    item = placed(source(tmp_path, mask))
    masks = cache(tmp_path, floor=0.2)
    assert masks.fill([item, item]) == 1
    weight = masks.get(item, flip=False)
    assert weight.mean().item() == pytest.approx(1)
    assert (weight[0, 0, 7] / weight[0, 0, 0]).item() == pytest.approx(0.2)
    assert torch.equal(masks.get(item, flip=True), weight.flip(2))
    assert cache(tmp_path).fill([item]) == 0  # found again: the floor is no part of the entry


def test_an_edited_mask_is_read_again(tmp_path):
    mask = np.full((64, 64), 255, np.uint8)
    item = placed(source(tmp_path, mask))
    key = cache(tmp_path).key(item)
    mask[:32] = 0
    source(tmp_path, mask)
    assert cache(tmp_path).key(item) != key
    other = replace(item, geometry=replace(item.geometry, crop_origin=(1, 0)))
    assert cache(tmp_path).key(other) != cache(tmp_path).key(item)


def test_batches_mix_pictures_with_and_without(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:16] = 255
    masked, whole = placed(source(tmp_path, mask)), placed(source(tmp_path, None, 64, 64, "b.png"))
    masks = cache(tmp_path)
    masks.fill([masked, whole])
    both = masks.batch([(masked, False), (whole, True)])
    assert both.shape == (2, 1, 8, 8)
    assert torch.all(both[1] == 1)
    assert both[0, 0, 0, 0] == 4
    assert masks.batch([(whole, False)]) is None
    with pytest.raises(StudioError, match="has lost its mask"):
        MaskCache(tmp_path / "elsewhere", Path, 8, 0.0).get(masked, flip=False)


class Latents:
    """Latents whose first column tells the mirror: 1 as they are, 2 mirrored."""

    def get(self, item, *, flip):
        return torch.full((4, 8, 8), 1.0 + flip), torch.zeros(4, 8, 8)


def test_a_batch_carries_the_mask_of_the_showing(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :16] = 255
    item = placed(source(tmp_path, mask))
    masks = cache(tmp_path)
    masks.fill([item])
    stream = BatchSource(
        [item], Latents(), no_text, DataSection(flip=True), seed=0, batch_size=1, masks=masks
    ).batches()
    seen = set()
    for _ in range(20):
        batch = next(stream)
        flip = batch.latents[0, 0, 0, 0].item() == 2
        seen.add(flip)
        assert (batch.mask[0, 0, 0, 0] > 0) == (not flip)
    assert seen == {False, True}
    off = BatchSource([item], Latents(), no_text, DataSection(), seed=0, batch_size=1)
    assert next(off.batches()).mask is None


def test_pieces_of_a_batch_keep_their_masks(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :16] = 255
    items = [
        placed(source(tmp_path, mask)),
        replace(placed(source(tmp_path, None, 64, 64, "b.png")), index=1),
    ]
    masks = cache(tmp_path)
    masks.fill(items)
    batch = next(
        BatchSource(items, Latents(), no_text, DataSection(), seed=0, batch_size=2, masks=masks).batches()
    )
    for row in range(2):
        piece = batch.rows(slice(row, row + 1))
        assert torch.equal(piece.mask[0], batch.mask[row])
        assert piece.names == [batch.names[row]]


def no_text(captions):
    return {}


class Family:
    def conditioning(self, cond):
        return cond

    def predict(self, x_t, t, cond, geometry):
        return x_t * 0.5


class Objective:
    def corrupt(self, x0, noise, t):
        return x0 + noise

    def target(self, x0, noise, t):
        return noise

    def penalty(self, prediction, target, t):
        return (prediction - target) ** 2

    def weight(self, t):
        return torch.tensor([1.0, 3.0])


def test_the_loss_is_the_weighted_mean_over_the_mask(tmp_path):
    """Against sum(w p) / sum(w) of each sample, written out with numpy."""
    rng = np.random.default_rng(1)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:32, 16:40] = 200
    masked, whole = placed(source(tmp_path, mask)), placed(source(tmp_path, None, 64, 64, "b.png"))
    masks = cache(tmp_path, floor=0.1)
    masks.fill([masked])

    class Random:
        def get(self, item, *, flip):
            return torch.from_numpy(rng.normal(size=(4, 8, 8))).float(), torch.zeros(4, 8, 8)

    batches = BatchSource(
        [masked, replace(whole, index=1)], Random(), no_text, DataSection(), seed=0, batch_size=2,
        masks=masks,
    )  # fmt: skip
    batch = next(batches.batches())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    loss = error(Family(), Objective(), batch, noise, torch.zeros(2)).item()
    cells = mask.reshape(8, 8, 8, 8).mean((1, 3)) / 255
    total = 0.0
    for row, name in enumerate(batch.names):
        weight = 0.1 + 0.9 * cells if name == "a.png" else np.ones((8, 8))
        penalty = ((batch.latents[row] + noise[row]) * 0.5 - noise[row]).numpy() ** 2
        mean = (penalty.mean(0) * weight).sum() / weight.sum()
        total += mean * (1.0, 3.0)[row] / 2
    assert loss == pytest.approx(total, rel=1e-5)


def test_a_black_mask_is_refused_by_name(tmp_path):
    black = placed(source(tmp_path, np.zeros((64, 64), np.uint8)))
    with pytest.raises(BadInput, match=r"a\.png: has a mask that is black all over\. paint white what"):
        cache(tmp_path).fill([black])
    edge = np.zeros((64, 256), np.uint8)
    edge[:, :8] = 255
    cut = placed(source(tmp_path, edge, name="b.png"), buckets=False)
    with pytest.raises(BadInput, match=r"b\.png: has a mask that is black in all of the part that is shown"):
        cache(tmp_path).fill([cut])


@pytest.mark.parametrize("harm", ["missing", "text"])
def test_an_unreadable_mask_is_refused_by_name(tmp_path, harm):
    item = placed(source(tmp_path, np.full((64, 64), 255, np.uint8)))
    if harm == "missing":
        Path(item.source.mask).unlink()
    else:
        Path(item.source.mask).write_text("hello")
    with pytest.raises(BadInput, match=r"mask of a\.png: (is missing|cannot be read)"):
        cache(tmp_path).fill([item])


def test_the_focus_is_the_center_of_mass(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[60:80, 20:60] = 255
    assert focus_of(source(tmp_path, mask), Path) == pytest.approx((0.2, 0.7))
    assert focus_of(source(tmp_path, None, 10, 10), Path) is None
    assert focus_of(source(tmp_path, np.zeros((8, 8), np.uint8)), Path) is None


def masked_pictures(folder, pictures, shade):
    """The pictures with their upper half masked by `shade`, and tags in their captions."""
    folder.mkdir()
    items = []
    for picture in pictures:
        mask = np.full((picture.height, picture.width), 255, np.uint8)
        mask[: picture.height // 2] = shade
        Image.fromarray(mask).save(folder / picture.name)
        caption = f"{picture.caption}, one, {{two|three}}, four\n{picture.caption}"
        items.append(
            replace(picture, mask=str(folder / picture.name), caption=caption, repeats=2, weight=0.5)
        )
    return items


def test_masks_change_the_loss_only_where_they_hide_something(tmp_path, tiny_sd15, pictures):
    def losses(name, shade, changes):
        items = masked_pictures(tmp_path / f"{name}-masks", pictures, shade)
        rundir = write_run(tmp_path / name, tiny_sd15, items, {"train.max_steps": 2, **changes})
        assert train(rundir) == 0, rundir.file("log.txt").read_text()
        return [line["loss"] for line in rundir.read_metrics()]

    plain = losses("off", 0, {"data.masks": False})
    assert losses("white", 255, {}) == plain
    half = losses("half", 0, {})
    assert half != plain
    assert losses("floor", 0, {"data.mask_floor": 1.0}) == plain
    assert losses("focus", 0, {"data.crop": "focus"}) == half  # nothing to cut: the same crop


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
def test_a_run_with_everything_drawn_resumes_bit_for_bit(tmp_path, request, pictures, family):
    """Masks, two sizes, random crops, flips, versions, repeats: what is drawn depends on its place alone."""
    items = masked_pictures(tmp_path / "masks", pictures, 0)
    changes = {
        "train.resolution": 40, "train.resolutions": (32,), "data.crop": "random", "data.flip": True,
        "data.shuffle_tags": True,
        "data.tag_dropout": 0.2, "data.buckets": False, "train.batch_size": 2, "train.accumulate": 2,
        "train.max_steps": 4,
    }  # fmt: skip
    base = request.getfixturevalue(f"tiny_{family}")
    whole = write_run(tmp_path / "whole", base, items, changes, family=family)
    assert train(whole) == 0, whole.file("log.txt").read_text()
    cut = RunDir(Path(shutil.copytree(whole.path, tmp_path / "cut")))
    cut.adapter.unlink()
    newest = cut.checkpoints()[-1]
    assert checkpoint_step(newest) == 4
    shutil.rmtree(newest)
    resume(cut)
    assert train(cut) == 0, cut.file("log.txt").read_text()
    assert [line["loss"] for line in cut.read_metrics()] == [line["loss"] for line in whole.read_metrics()]
    ours, theirs = load_file(cut.adapter), load_file(whole.adapter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
