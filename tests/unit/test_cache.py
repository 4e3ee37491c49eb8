"""Caches: hit, miss, damage, what is not finite; pictures as the model sees them; batches out of caches."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from registry.errors import BadInput, StudioError
from trainers.cache import LatentCache, Shelf, TextCache
from trainers.captions import captions_needed
from trainers.data import BatchSource, read_pixels
from trainers.families import FAMILIES
from trainers.placing import place_items, views
from trainers.plan import assign_buckets
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem

POCKET = Path(__file__).parents[2] / "studio" / "pocket" / "model"


class Encoder:
    """A linear stand-in for VAE and text encoder that counts what it is asked for."""

    def __init__(self):
        self.pictures, self.captions = 0, []

    def image(self, pixels):
        self.pictures += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return mean, torch.full_like(mean, 0.01)

    def text(self, captions):
        self.captions += captions
        return {"hidden": torch.stack([torch.full((3, 4), float(len(c))) for c in captions])}


def picture(path, width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return ManifestItem(
        image=str(path), pixel_hash=path.stem, width=width, height=height, caption=path.stem, name=path.name
    )


@pytest.fixture
def world(tmp_path):
    """Five pictures in two buckets, placed; and a reader of them."""
    shapes = [(64, 64), (64, 64), (64, 64), (96, 48), (96, 48)]
    sources = [picture(tmp_path / f"{i}.png", w, h, i) for i, (w, h) in enumerate(shapes)]
    items, _ = assign_buckets(sources, resolution=64, step=16, data=DataSection())
    return items, lambda item, flip: read_pixels(Path(item.source.image), item, flip=flip)


def fill(cache, items, read, encoder, flips=(False,), **more):
    return cache.fill(items, flips=flips, read=read, encode=encoder.image, **more)


def test_entries_are_made_once_and_found_again(tmp_path, world):
    items, read = world
    encoder, told = Encoder(), []
    cache = LatentCache(tmp_path / "cache", "vae")
    assert fill(cache, items, read, encoder, batch_size=2, progress=lambda *p: told.append(p)) == 5
    assert told == [(2, 5), (4, 5), (5, 5)]  # the two wide ones, then three square ones
    for reader in (
        cache,
        LatentCache(tmp_path / "cache", "vae"),
        LatentCache(tmp_path / "cache", "vae", memory=0),
    ):
        assert fill(reader, items, read, encoder) == 0
        mean, std = reader.get(items[3], flip=False)
        wanted = torch.nn.functional.avg_pool2d(read(items[3], False)[None], 8)[0]
        assert torch.equal(mean, wanted)
        assert (mean.dtype, std.dtype) == (torch.float32, torch.float16)
    assert encoder.pictures == 5


def test_a_key_follows_pixels_weights_geometry_and_mirror_and_nothing_else(world):
    from dataclasses import replace

    items, _ = world
    item, cache = items[3], LatentCache(Path("unused"), "vae")
    key = cache.key(item, flip=False)
    geometry = item.geometry
    others = [
        cache.key(item, flip=True),
        LatentCache(Path("unused"), "other vae").key(item, flip=False),
        cache.key(replace(item, source=replace(item.source, pixel_hash="x")), flip=False),
        cache.key(replace(item, geometry=replace(geometry, target=(16, 16))), flip=False),
        cache.key(replace(item, geometry=replace(geometry, crop_origin=(1, 0))), flip=False),
    ]
    assert len({key, *others}) == 6
    moved = replace(item, index=9, source=replace(item.source, image="elsewhere", caption="new", name="n"))
    assert cache.key(moved, flip=False) == key


@pytest.mark.parametrize("harm", ["cut", "empty", "flip a bit", "text", "folder gone"])
def test_a_damaged_entry_is_made_again_with_a_line_in_the_log(tmp_path, world, caplog, harm):
    items, read = world
    encoder = Encoder()
    cache = LatentCache(tmp_path / "cache", "vae")
    fill(cache, items, read, encoder)
    path = cache.shelf.path(cache.key(items[0], flip=False))
    before = path.read_bytes()
    if harm == "folder gone":
        path.unlink()
    else:
        flipped = before[:-9] + bytes([before[-9] ^ 1]) + before[-8:]
        path.write_bytes({"cut": before[:-5], "empty": b"", "flip a bit": flipped, "text": b"hello"}[harm])
    again = LatentCache(tmp_path / "cache", "vae")
    with caplog.at_level(logging.WARNING):
        assert fill(again, items, read, encoder) == 1
    assert ("is damaged" in caplog.text) == (harm != "folder gone")
    assert path.read_bytes() == before
    assert encoder.pictures == 6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path, place, bit):
    shelf = Shelf(tmp_path / "shelf", memory=0)
    tensors = {"mean": torch.arange(12.0).reshape(3, 4), "std": torch.ones(2, dtype=torch.float16)}
    shelf.write("ab", tensors)
    data = bytearray(shelf.path("ab").read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    shelf.path("ab").write_bytes(bytes(data))
    found = shelf.read("ab")
    assert found is None or all(torch.equal(found[name], value) for name, value in tensors.items())


def test_an_entry_lost_in_mid_run_is_named(tmp_path, world):
    items, read = world
    cache = LatentCache(tmp_path / "cache", "vae", memory=0)
    fill(cache, items, read, Encoder())
    cache.shelf.path(cache.key(items[1], flip=False)).unlink()
    with pytest.raises(StudioError, match=r"1\.png: has lost its latents"):
        cache.get(items[1], flip=False)


def test_latents_that_are_not_finite_name_the_picture_and_are_not_kept(tmp_path, world):
    items, read = world
    cache = LatentCache(tmp_path / "cache", "vae")

    def broken(pixels):
        mean, std = Encoder().image(pixels)
        mean[-1, 0, 0, 0] = float("nan")
        return mean, std

    with pytest.raises(StudioError, match=r"4\.png: the VAE makes values of it that are not finite"):
        cache.fill([items[3], items[4]], flips=(False,), read=read, encode=broken)
    assert cache.shelf.read(cache.key(items[4], flip=False)) is None


def test_text_is_encoded_once_per_caption_and_weights_and_precision(tmp_path):
    encoder = Encoder()
    cache = TextCache(tmp_path, "clip", dtype=torch.float32)
    assert cache.fill(["", "a", "a", "bb"], encode=encoder.text, batch_size=2) == 3
    assert encoder.captions == ["", "a", "bb"]
    again = TextCache(tmp_path, "clip", dtype=torch.float32)
    assert again.fill(["", "a", "bb"], encode=encoder.text) == 0
    assert again.get(["bb", "", "bb"])["hidden"][:, 0, 0].tolist() == [2, 0, 2]
    assert again.get(["bb", ""])["hidden"].shape == (2, 3, 4)
    keys = {
        again.key("a"),
        again.key("b"),
        TextCache(tmp_path, "other", dtype=torch.float32).key("a"),
        TextCache(tmp_path, "clip", dtype=torch.bfloat16).key("a"),
    }
    assert len(keys) == 4
    with pytest.raises(StudioError, match="caption 'new': has lost its conditioning"):
        again.get(["new"])


def test_text_keeps_half_precision_and_refuses_what_is_not_finite(tmp_path):
    cache = TextCache(tmp_path, "clip", dtype=torch.bfloat16)
    cache.fill(["a"], encode=lambda c: {"hidden": torch.full((len(c), 2), 1.5, dtype=torch.bfloat16)})
    assert TextCache(tmp_path, "clip", dtype=torch.bfloat16).get(["a"])["hidden"].dtype == torch.bfloat16
    with pytest.raises(StudioError, match="caption 'b': the text encoder gives values that are not finite"):
        cache.fill(["b"], encode=lambda c: {"hidden": torch.full((len(c), 2), float("inf"))})


def item_at(path, **data):
    with Image.open(path) as opened:
        width, height = opened.size
    source = ManifestItem(
        image=str(path), pixel_hash="p", width=width, height=height, caption="", name=path.name
    )
    return assign_buckets([source], resolution=64, step=16, data=DataSection(**data))[0][0]


def test_pixels_are_the_picture_itself_when_nothing_is_to_be_done(tmp_path):
    source = picture(tmp_path / "a.png", 64, 64)
    item = item_at(Path(source.image))
    pixels = read_pixels(Path(source.image), item)
    with Image.open(source.image) as opened:
        original = np.asarray(opened).astype(np.float32)
    assert torch.equal(pixels, torch.from_numpy(original / np.float32(127.5) - 1).permute(2, 0, 1))
    assert torch.equal(read_pixels(Path(source.image), item, flip=True), pixels.flip(2))


def test_crops_take_the_stated_part(tmp_path):
    """A ramp tells where a pixel came from: grey value = row or column."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 100, axis=1).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "tall.png")
    for crop, first, last in (("top", 0, 100), ("center", 50, 150)):
        item = item_at(tmp_path / "tall.png", buckets=False, crop=crop)
        rows = (read_pixels(tmp_path / "tall.png", item)[0, :, 0] + 1) * 127.5
        scale = 100 / 64  # original pixels per row; the centre of row r came from (r + 1/2) * scale
        assert rows[10].item() == pytest.approx(first + 10.5 * scale - 0.5, abs=1)
        assert rows[-1].item() == pytest.approx(last - 0.5 * scale - 0.5, abs=1.5)


def test_transparent_parts_become_white_and_other_modes_rgb(tmp_path):
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.all(read_pixels(tmp_path / "clear.png", item_at(tmp_path / "clear.png")) == 1)
    for mode, colour in (("L", 0), ("CMYK", (0, 0, 0, 255)), ("P", 0), ("1", 0), ("LA", (0, 255))):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (64, 64), colour).save(path)
        assert read_pixels(path, item_at(path)).shape == (3, 64, 64)
        assert read_pixels(path, item_at(path)).max() < -0.9


@pytest.mark.parametrize("harm", ["missing", "cut", "text", "other size"])
def test_a_bad_picture_is_named(tmp_path, harm):
    path = tmp_path / "cat.png"
    source = picture(path, 64, 64)
    item = item_at(Path(source.image))
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "other size":
        picture(path, 32, 64)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "text": b"hello"}[harm])
    said = {"missing": "is missing", "other size": "is 32x64 now and was 64x64"}.get(
        harm, "cannot be decoded"
    )
    with pytest.raises(BadInput, match=rf"cat\.png: {said}"):
        read_pixels(path, item)
    with pytest.raises(BadInput, match=said):  # also out of the decoding threads
        LatentCache(tmp_path, "v").fill(
            [item], flips=(False,), read=lambda i, f: read_pixels(path, i, flip=f), encode=Encoder().image
        )


@pytest.fixture
def source(tmp_path, world):
    """Batches of 2 out of filled caches, with flips and dropout."""
    items, read = world
    data = DataSection(flip=True, caption_dropout=0.3, trigger="sks")
    encoder = Encoder()
    latents = LatentCache(tmp_path / "cache", "vae")
    fill(latents, items, read, encoder, flips=(False, True))
    text = TextCache(tmp_path / "cache", "clip", dtype=torch.float32)
    text.fill(captions_needed(items, data, 5), encode=encoder.text)

    def make(**more):
        return BatchSource(items, latents, text.get, data, seed=5, batch_size=2, **more)

    return make


def same(one, other):
    return (
        torch.equal(one.latents, other.latents)
        and torch.equal(one.cond["hidden"], other.cond["hidden"])
        and (one.names, one.captions, one.geometry, one.epoch, one.index)
        == (other.names, other.captions, other.geometry, other.epoch, other.index)
    )


def test_batches_hold_the_right_latents_captions_and_crops(source, world):
    items, read = world
    stream = source().batches()
    flipped = dropped = 0
    for _ in range(60):
        batch = next(stream)
        for row, name in enumerate(batch.names):
            item = next(item for item in items if item.label == name)
            means = {
                flip: torch.nn.functional.avg_pool2d(read(item, flip)[None], 8)[0] for flip in (False, True)
            }
            flip = min(means, key=lambda f: (batch.latents[row] - means[f]).abs().max().item())
            assert (
                batch.latents[row] - means[flip]
            ).abs().max() < 0.01 * 6  # six deviations of the posterior
            assert (batch.latents[row] - means[flip]).abs().max() > 0
            assert batch.geometry[row] == (item.geometry.mirrored() if flip else item.geometry)
            assert batch.captions[row] in ("", f"sks, {item.source.caption}")
            assert torch.all(batch.cond["hidden"][row] == len(batch.captions[row]))
            flipped, dropped = flipped + flip, dropped + (batch.captions[row] == "")
        assert batch.weight.tolist() == [1.0] * len(batch.names)
    assert flipped > 20
    assert dropped > 10


def test_a_random_crop_comes_with_its_own_latents_and_place(tmp_path):
    sources = [picture(tmp_path / f"{i}.png", 200, 64, i) for i in range(3)]
    data = DataSection(crop="random", crop_variants=4, buckets=False, flip=True, caption_dropout=0.0)
    items, _ = place_items(sources, sizes=(64,), step=16, data=data, seed=3)
    encoder, latents = Encoder(), LatentCache(tmp_path / "cache", "vae")

    def read(item, flip):
        return read_pixels(Path(item.source.image), item, flip=flip)

    everything = [view for item in items for view in views(item)]
    assert fill(latents, everything, read, encoder, flips=(False, True)) == 24
    stream = BatchSource(items, latents, lambda texts: {}, data, seed=3, batch_size=2).batches()  # noqa: ARG005
    seen = set()
    for _ in range(60):
        batch = next(stream)
        for row, name in enumerate(batch.names):
            views_of = [(v, flip) for v in everything if v.label == name for flip in (False, True)]
            found = min(
                views_of,
                key=lambda one: (
                    (batch.latents[row] - torch.nn.functional.avg_pool2d(read(*one)[None], 8)[0]).abs().max()
                ),
            )
            view, flip = found
            assert batch.geometry[row] == (view.geometry.mirrored() if flip else view.geometry)
            seen.add((name, view.geometry, flip))
    assert len(seen) > 18


def test_resuming_anywhere_meets_the_same_batches_bit_for_bit(source):
    stream = source().batches()
    whole = [next(stream) for _ in range(9)]
    assert source().batches_per_epoch == 3
    for start in range(9):
        stream = source().batches(*divmod(start, 3))
        assert all(same(next(stream), wanted) for wanted in whole[start:])
    stream = source().batches(1, 3)  # past the end: the next epoch
    assert same(next(stream), whole[6])


def test_ranks_meet_different_pictures_of_one_bucket(source):
    streams = [source(rank=rank, world=2).batches() for rank in range(2)]
    for _ in range(8):
        first, second = (next(stream) for stream in streams)
        assert first.latents.shape[1:] == second.latents.shape[1:]
        assert set(first.names).isdisjoint(second.names)
        assert (first.epoch, first.index) == (second.epoch, second.index)


def test_tokens_take_the_place_of_cached_text(source):
    from dataclasses import replace

    tokens = replace(source(), conditioning=lambda c: {"input_ids": torch.tensor([[len(x)] for x in c])})
    batch = next(tokens.batches())
    assert batch.cond["input_ids"][:, 0].tolist() == [len(caption) for caption in batch.captions]


def test_moving_to_the_cpu_is_free_and_to_a_device_moves_everything(source):
    batch = next(source().batches())
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {moved.latents.device.type, moved.weight.device.type, moved.cond["hidden"].device.type} == {"meta"}


def test_the_pocket_base_through_both_caches(tmp_path, world):
    """Real VAE and text encoder: cached latents decode to the pictures and equal a fresh encoding."""
    from trainers.families.base import BaseFiles

    family = FAMILIES["sd15"].load_class()(
        BaseFiles(str(POCKET)), dtype=torch.float32, device=torch.device("cpu")
    )
    for i, item in enumerate(world[0]):  # smooth pictures, as the pocket VAE knows them
        width, height = item.source.width, item.source.height
        ramp = np.linspace(40, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
        Image.fromarray((ramp + np.array([0, 5 * i, 10])).clip(0, 255).astype(np.uint8)).save(
            item.source.image
        )
    items, read = world
    latents = LatentCache(tmp_path / "real", family.component_hash("vae"))
    latents.fill(items, flips=(False,), read=read, encode=family.encode_image)
    mean, _ = LatentCache(tmp_path / "real", family.component_hash("vae")).get(items[3], flip=False)
    assert torch.allclose(mean, family.encode_image(read(items[3], False)[None])[0][0], atol=1e-5)
    error = (family.decode_image(mean[None])[0] - read(items[3], False)).square().mean()
    assert 10 * torch.log10(4 / error) > 24  # PSNR in dB; the range is 2
    text = TextCache(tmp_path / "real", family.component_hash("text_encoder"), dtype=torch.float32)
    text.fill(["", "a red circle"], encode=family.encode_text)
    direct = family.encode_text(["a red circle", ""])
    cached = text.get(["a red circle", ""])
    assert cached.keys() == direct.keys()
    assert all(torch.allclose(cached[name], direct[name], atol=1e-5) for name in direct)
