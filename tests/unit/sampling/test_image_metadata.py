"""Pictures say how they were made, to other tools and to us."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from registry.errors import BadInput
from studio.sampling.metadata.a1111 import a1111_parameters, parse_a1111
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.metadata.said import AdapterMark
from studio.sampling.metadata.writing import write_picture
from studio.sampling.request import AdapterChoice, SampleRequest

INK = AdapterMark("ink style", 0.8, None, "ab" * 32, "0123456789")
CAT = AdapterMark("cat", 0.5, 0.0, "cd" * 32, "abcdefghjk")
REQUEST = SampleRequest(
    base="basebaseid",
    adapters=(AdapterChoice(id=INK.id, weight=0.8), AdapterChoice(id=CAT.id, weight=0.5, text_weight=0)),
    prompt="a cat, drawn in ink",
    negative="blurry, text",
    steps=30,
    cfg=6.5,
    seed=2**32 - 1,
    width=512,
    height=768,
    scheduler="DPM++ 2M Karras",
    count=4,
)


def _picture(size=(8, 8)):
    return Image.new("RGB", size, (200, 30, 30))


def test_a1111_text_is_what_a1111_writes():
    text = a1111_parameters(REQUEST, base_name="sd, v1.5", base_hash="0123456789abcdef", adapters=[INK, CAT])
    prompt, negative, last = text.split("\n")
    assert prompt == "a cat, drawn in ink <lora:ink-style:0.8> <lora:cat:0:0.5>"
    assert negative == "Negative prompt: blurry, text"
    assert last.startswith(
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, "
        'Size: 512x768, Model hash: 0123456789, Model: "sd, v1.5", '
        'Lora hashes: "ink-style: abababababab, cat: cdcdcdcdcdcd", '
        "Version: LoRA Studio "
    )


def test_written_and_read_back(tmp_path):
    path = tmp_path / "000.png"
    write_picture(
        _picture(), path, REQUEST, index=1, base_name="SD", base_hash="ff" * 32,
        base_scheduler="DDIMScheduler", adapters=[INK, CAT],
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["000.png"]
    assert Image.open(path).getpixel((0, 0)) == (200, 30, 30)
    found = read_metadata(path)
    assert found.source == "lora_studio"
    assert found.adapters == (INK, CAT)
    assert (found.base_name, found.base_hash) == ("SD", "ff" * 32)
    # picture 1 of seed 2^32 - 1 has seed 0, and is repeated by a request of its own
    assert found.request == REQUEST.model_copy(update={"seed": 0, "count": 1})
    assert found.pairs["Seed"] == "0"


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80),
    negative=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80),
)
def test_any_words_survive_in_our_own_json(tmp_path_factory, prompt, negative):
    path = tmp_path_factory.getbasetemp() / "any.png"
    request = REQUEST.model_copy(update={"prompt": prompt, "negative": negative, "count": 1})
    write_picture(_picture(), path, request)
    assert read_metadata(path).request == request


LINE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Zl", "Zp", "Cc"]), max_size=60)


@given(prompt=LINE, negative=LINE, model=LINE)
def test_a1111_text_round_trips_for_plain_prompts(prompt, negative, model):
    if "Negative prompt:" in prompt or "<lora:" in prompt + negative:
        return
    request = REQUEST.model_copy(update={"prompt": prompt, "negative": negative.strip(), "adapters": ()})
    found = parse_a1111(a1111_parameters(request, base_name=model, adapters=[CAT]))
    assert (found.prompt, found.negative) == (prompt.strip(), negative.strip())
    assert (found.steps, found.cfg, found.seed) == (30, 6.5, 2**32 - 1)
    assert (found.width, found.height, found.scheduler) == (512, 768, "DPM++ 2M Karras")
    assert found.base_name == (model if any(c in model for c in ',:"') else model.strip())
    assert found.adapters == (AdapterMark("cat", 0.5, 0.0, "cd" * 6),)


def test_a_short_last_line_is_prompt():
    found = parse_a1111("a castle\nStyle: gothic, Mood: dark")
    assert found.prompt == "a castle\nStyle: gothic, Mood: dark"
    assert found.pairs == {}


def test_a_picture_of_a1111(tmp_path):
    text = (
        "masterpiece, <lora:foo:1> cat\nsecond line\nNegative prompt: bad\nworse\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x512, "
        'Lora hashes: "foo: 0123456789ab"'
    )
    info = PngInfo()
    info.add_text("parameters", text)
    _picture().save(tmp_path / "a.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    _picture().save(tmp_path / "a.jpg", exif=exif)
    for name in ("a.png", "a.jpg"):
        found = read_metadata(tmp_path / name)
        assert found.source == "a1111", name
        assert found.prompt == "masterpiece,  cat\nsecond line"
        assert found.negative == "bad\nworse"
        assert found.scheduler == "DPM++ 2M Karras"
        assert found.adapters == (AdapterMark("foo", 1.0, None, "0123456789ab"),)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"request": 1}', "[" * 100_000, '{"request": {"base": "x"}}']
)
def test_a_broken_entry_of_ours_is_ignored(tmp_path, text):
    info = PngInfo()
    info.add_text("lora_studio", text)
    _picture().save(tmp_path / "a.png", pnginfo=info)
    found = read_metadata(tmp_path / "a.png")
    assert found.source == ""
    assert found.request is None


def test_own_json_is_plain_ascii(tmp_path):
    write_picture(_picture(), tmp_path / "a.png", REQUEST.model_copy(update={"prompt": "猫 🐈"}))
    data = (tmp_path / "a.png").read_bytes()
    own = json.loads(Image.open(tmp_path / "a.png").info["lora_studio"])
    assert own["request"]["prompt"] == "猫 🐈"
    assert b"tEXtlora_studio" in data


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(BadInput, match="is not a sound PNG, JPEG or WebP picture"):
        read_metadata(tmp_path / "a.png")
    with pytest.raises(BadInput, match="does not exist"):
        read_metadata(tmp_path / "b.png")


def test_an_endless_line_costs_no_time():
    started = time.monotonic()
    for line in ("a" * 1_000_000, " " * 1_000_000, 'a b:"' * 100_000):
        parse_a1111("x\n" + line)
    assert time.monotonic() - started < 5
