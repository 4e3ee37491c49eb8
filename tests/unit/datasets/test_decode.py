"""Pictures from anywhere: what is stored, what is converted, what is refused and with which words."""

import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from registry.errors import BadInput
from studio.datasets import decode as decode_module
from studio.datasets.decode import Decoders, Source, decode, read_file
from studio.datasets.picture import normalise, strip_jpeg
from tests.support.pictures import decoded, encoded, hash_of, pixels

CAMERA, ORIENTATION, GPS = 0x010F, 0x0112, 0x8825


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2) as pool:
        yield pool


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[CAMERA] = "a camera that must not be kept"
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_plain_pictures_are_stored_as_they_came(decoders: Decoders, kind: str):
    data = encoded(pixels(), kind)
    found = decoders.decode(data, "a")
    assert found.data == data
    assert (found.width, found.height, found.note) == (40, 32, "")
    assert found.pixel_hash == hash_of(decoded(data))


def test_the_same_picture_in_two_files_is_one_picture(decoders: Decoders):
    one = encoded(pixels(), "PNG", compress_level=1)
    two = encoded(pixels(), "BMP")
    assert decoders.decode(one, "a").pixel_hash == decoders.decode(two, "b").pixel_hash == hash_of(pixels())


# What numpy does to (row, column) pixels for each EXIF orientation (EXIF 2.3, section 4.6.4, tag 274).
TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_once_and_stripped(decoders: Decoders, kind: str, orientation: int):
    data = encoded(pixels(), kind, exif=exif(orientation))
    stored = encoded(pixels(), kind)  # the same pixels without the tag: what the turn starts from
    expected = TURNS[orientation](decoded(stored))
    found = decoders.decode(data, "a")
    assert np.array_equal(decoded(found.data), expected)
    assert found.pixel_hash == hash_of(np.ascontiguousarray(expected))
    again = Image.open(BytesIO(found.data))
    assert not again.getexif()
    assert b"camera" not in found.data


def test_metadata_leaves_a_jpeg_without_touching_its_pixels(decoders: Decoders):
    data = encoded(pixels(), "JPEG", exif=exif(), comment=b"somebody's name", quality=80)
    found = decoders.decode(data, "a")
    assert found.data.startswith(b"\xff\xd8")
    assert b"camera" not in found.data
    assert b"somebody" not in found.data
    assert np.array_equal(decoded(found.data), decoded(data))
    assert len(found.data) < len(data)
    assert found.note == ""


def test_a_cameras_pair_of_views_becomes_a_plain_jpeg_of_the_first(decoders: Decoders):
    second = Image.fromarray(255 - pixels())
    data = encoded(pixels(), "MPO", save_all=True, append_images=[second])
    found = decoders.decode(data, "a")
    again = Image.open(BytesIO(found.data))
    assert (again.format, found.note) == ("JPEG", "")
    assert np.array_equal(np.asarray(again), decoded(data))


def test_stripping_gives_up_on_what_is_no_jpeg():
    assert strip_jpeg(b"\xff\xd8\x00\x00\x00\x00") is None
    assert strip_jpeg(b"\xff\xd8\xff\xe1\xff\xff") is None
    assert strip_jpeg(b"\xff\xd8") is None


def test_transparency_is_laid_on_white(decoders: Decoders):
    rgba = np.dstack([pixels(), np.full((32, 40), 100, np.uint8)])
    found = decoders.decode(encoded(rgba), "a")
    expected = (pixels() * (100 / 255) + 255 * (155 / 255)).round()
    assert np.abs(decoded(found.data).astype(float) - expected).max() <= 1
    assert found.note == "transparency laid on white"


def test_an_alpha_channel_without_effect_changes_nothing(decoders: Decoders):
    rgba = np.dstack([pixels(), np.full((32, 40), 255, np.uint8)])
    found = decoders.decode(encoded(rgba), "a")
    assert np.array_equal(decoded(found.data), pixels())
    assert found.note == ""


def test_sixteen_bits_become_the_upper_eight(decoders: Decoders):
    deep = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 51
    found = decoders.decode(encoded(Image.fromarray(deep)), "a")
    expected = (deep // 256).astype(np.uint8)
    assert np.array_equal(decoded(found.data), np.dstack([expected] * 3))
    assert found.note == "16-bit grey to 8-bit RGB"


def test_sixteen_bit_colour_is_noticed(decoders: Decoders):
    found = decoders.decode(png_of_16_bit_colour(pixels()), "a")
    assert np.array_equal(decoded(found.data), pixels())
    assert found.note == "16-bit to 8-bit"


def png_of_16_bit_colour(content: np.ndarray) -> bytes:
    """Pillow cannot write these: IHDR with depth 16 and colour type 2, rows with filter 0."""
    height, width, _ = content.shape
    rows = (content.astype(np.uint16) << 8).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return png_file((b"IHDR", head), (b"IDAT", zlib.compress(body)), (b"IEND", b""))


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    """Chunks as the PNG specification frames them: length, type, body, CRC of type and body."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        file += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return file


@pytest.mark.parametrize(
    ("image", "kind", "note"),
    [
        (Image.fromarray(pixels()).convert("CMYK"), "JPEG", "CMYK to RGB"),
        (Image.fromarray(pixels()).convert("L"), "PNG", "grey to RGB"),
        (Image.fromarray(pixels()).convert("1"), "PNG", "black and white to RGB"),
        (Image.fromarray(pixels()).quantize(8), "PNG", ""),
    ],
)
def test_other_colours_become_rgb(decoders: Decoders, image: Image.Image, kind: str, note: str):
    found = decoders.decode(encoded(image, kind), "a")
    content = decoded(found.data)
    assert content.shape == (32, 40, 3)
    assert found.note == note
    if kind == "PNG":
        assert np.array_equal(content, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(decoders: Decoders, kind: str):
    second = Image.fromarray(255 - pixels())
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(pixels(), kind, save_all=True, append_images=[second], **lossless)
    found = decoders.decode(data, "a")
    assert np.array_equal(decoded(found.data), pixels())
    assert found.note == "first of 2 frames"


def blank_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; nothing behind it has to be true for the refusal."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_file((b"IHDR", head), (b"IDAT", zlib.compress(bytes(64))))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
REFUSED = {
    "empty.png": (b"", "is empty (0 bytes)"),
    "text.png": (b"this is a note to myself", "is text, not a picture"),
    "svg.svg": (
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "is an SVG drawing",
    ),
    "photo.heic": (HEIC, "is a HEIC picture"),
    "cut.jpg": (encoded(pixels(), "JPEG")[:-40], "is cut off"),
    "cut.png": (encoded(pixels())[:-40], "is cut off"),
    "tail.png": (encoded(pixels())[:-12], "is cut off"),
    "cut.webp": (encoded(pixels(), "WEBP")[:-9], "cut off"),
    "400MP.png": (blank_png(20000, 20000), "20000x20000 pixels (400 MP), more than 64 MP"),
    "144MP.png": (blank_png(12000, 12000), "12000x12000 pixels (144 MP), more than 64 MP"),
    "dot.png": (encoded(pixels(width=1, height=1)), "is 1x1 pixels, too small"),
    "a.gif": (encoded(pixels(), "GIF"), "is a GIF"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "page.jpg": (b"<!DOCTYPE html><html><body>Log in</body></html>", "is a web page"),
    "float.tiff": (encoded(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"), "floating-point"),
    "start.jpg": (b"\xff\xd8\xff", "is damaged or cut off"),
    "noise.bin": (bytes(range(128, 256)) * 4, "is not a picture we read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_that_names_the_file(decoders: Decoders, name: str):
    data, wrong = REFUSED[name]
    with pytest.raises(BadInput) as raised:
        decoders.decode(data, name)
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert wrong in message
    assert "\n" not in message
    assert raised.value.do


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF"]), share=st.floats(0, 0.999))
def test_no_cut_file_passes_as_whole(kind: str, share: float):
    data = encoded(pixels(), kind)
    cut = data[: int(len(data) * share)]
    try:
        found = normalise(cut, "cut")
    except BadInput:
        return
    # A decoder may not need the last bytes (padding, an index); then the pixels are all there.
    assert found.pixel_hash == hash_of(decoded(data))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]), data=st.data())
def test_damaged_files_give_a_picture_or_a_line(kind: str, data: st.DataObject):
    content = bytearray(encoded(pixels(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = normalise(bytes(content), "bent")
    except BadInput:  # and nothing else
        return
    assert found.pixel_hash == hash_of(decoded(found.data))


def test_many_come_out_in_order_with_errors_in_place(decoders: Decoders):
    files = [encoded(pixels(seed)) for seed in range(30)]
    files[7] = b"no picture at all"
    sources = [Source(f"{i}.png", lambda data=data: data) for i, data in enumerate(files)]
    found = list(decoders.decode_all(sources, lambda one: one.pixel_hash))
    assert [source.name for source, _ in found] == [f"{i}.png" for i in range(30)]
    assert isinstance(found[7][1], BadInput)
    assert [result for _, result in found if isinstance(result, str)] == [
        hash_of(pixels(seed)) for seed in range(30) if seed != 7
    ]


def test_few_pictures_are_in_memory_at_once(decoders: Decoders):
    reading: list[int] = []
    done: list[int] = []

    def source(index: int) -> Source:
        def read() -> bytes:
            reading.append(index)
            return encoded(pixels(index))

        return Source(str(index), read)

    for _ in decoders.decode_all((source(i) for i in range(40)), lambda one: one.width):
        done.append(1)
        assert len(reading) - len(done) <= decoders.count * decode_module.AHEAD


def test_a_child_that_dies_costs_one_picture_and_is_replaced(monkeypatch: pytest.MonkeyPatch):
    with Decoders(1) as pool:
        pool.decode(encoded(pixels()), "first")
        child = pool._free.get()
        assert child is not None
        child.process.kill()
        child.process.wait()
        pool._free.put(child)
        with pytest.raises(BadInput, match="second: made the decoder crash"):
            pool.decode(encoded(pixels()), "second")
        assert pool.decode(encoded(pixels()), "third").width == 40


def test_a_silent_child_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_module, "WALL_SECONDS", 0.2)
    with Decoders(1) as pool:
        pool._free.get()
        child = decode_module._Child()
        os.kill(child.process.pid, signal.SIGSTOP)
        pool._free.put(child)
        with pytest.raises(BadInput, match="slow: takes too long to decode"):
            pool.decode(encoded(pixels()), "slow")
        assert child.process.returncode is not None


def test_the_child_has_limits_and_neither_torch_nor_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    child = decode_module._Child()
    try:
        child.ask(encoded(pixels()), "a", "picture")
        limits = Path(f"/proc/{child.process.pid}/limits").read_text()
        address = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert str(3 * 2**30) in address
        written = next(line for line in limits.splitlines() if line.startswith("Max file size"))
        assert written.split()[3] == "0"
        assert "torch" not in Path(f"/proc/{child.process.pid}/maps").read_text()
        assert b"HF_TOKEN" not in Path(f"/proc/{child.process.pid}/environ").read_bytes()
    finally:
        child.close()


def test_a_data_folder_cannot_lend_the_child_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "json.py").write_text("raise SystemExit('ran code of a data folder')")
    monkeypatch.chdir(tmp_path)
    assert decode(encoded(pixels()), "a").width == 40


def test_processor_time_is_limited_per_picture():
    """Three pictures of 0.8 s pass a limit of 1 to 2 s each, because it counts anew; one of 4 s is ended."""
    code = (
        "import time, studio.datasets.decode_child as c; c.SECONDS = 1\n"
        "def burn(s):\n end = time.process_time() + s\n while time.process_time() < end: pass\n"
        "for _ in range(3): c.limit_next_picture(); burn(0.8)\n"
        "print('alive', flush=True)\n"
        "c.limit_next_picture(); burn(4); print('too late', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n"
    assert done.returncode == -signal.SIGXCPU


def test_files_are_read_with_care(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(bytes(3 * 2**20))
    with pytest.raises(BadInput, match=r"a\.png: has 3 MiB, more than 1 MiB"):
        read_file(tmp_path / "a.png", "a.png", 2**20)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadInput, match=r"pipe\.png: is not a plain file"):
        read_file(tmp_path / "pipe.png", "pipe.png")
    with pytest.raises(BadInput, match=r"b\.png: has 300 MiB"):
        decode(_Long(), "b.png")


class _Long(bytes):
    """Bytes that only claim their length."""

    def __len__(self) -> int:
        return 300 * 2**20


def test_a_single_path_is_decoded(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(encoded(pixels()))
    assert decode(tmp_path / "one.png").pixel_hash == hash_of(pixels())
