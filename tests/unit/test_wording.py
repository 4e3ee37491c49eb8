"""Caption versions: finite, pure functions of their place, and what each option promises."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.captions import captions_needed, shown_caption, wording
from trainers.plan import Geometry, Item
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem


def item(caption, index=0, pixels=""):
    source = ManifestItem(
        image=f"{index}.png", pixel_hash=pixels or f"p{index}", width=64, height=64, caption=caption
    )
    return Item(index, source, Geometry((64, 64), (0, 0), (64, 64)))


def versions(caption, seed=0, **data):
    return wording(item(caption).source, DataSection(**data), seed).versions()


def test_without_options_a_caption_stays_as_it_is():
    assert versions("b,a ,  c") == ("b,a , c",)
    assert versions("") == ("",)
    assert versions("a cat", trigger="sks") == ("sks, a cat",)


def test_lines_are_alternatives_or_joined():
    assert versions("a cat\n\n a black  cat \n") == ("a cat", "a black cat")
    assert versions("a cat\na black cat", variations=False) == ("a cat a black cat",)
    assert versions("a cat\na black cat", trigger="sks") == ("sks, a cat", "sks, a black cat")


def test_shuffled_tags_are_all_there_in_many_orders():
    made = versions("a, b, c, d, e", shuffle_tags=True, caption_variants=32)
    assert len(made) == 32
    assert {tuple(sorted(text.split(", "))) for text in made} == {("a", "b", "c", "d", "e")}
    assert len(set(made)) > 20
    assert len({text[0] for text in made}) == 5


def test_kept_tags_stay_in_front():
    made = versions("x, y, a, b, c", shuffle_tags=True, tag_dropout=0.5, keep_tokens=2, caption_variants=32)
    assert all(text.startswith("x, y") for text in made)
    assert len(set(made)) > 8


def test_the_separator_keeps_what_is_before_and_behind():
    text = "x, y ||| a, b, c ||| best, last"
    made = versions(text, shuffle_tags=True, tag_dropout=0.3, keep_tokens=1, caption_variants=32)
    assert all(one.startswith("x, y") and one.endswith("best, last") for one in made)
    assert len(set(made)) > 8
    assert versions(text) == ("x, y, a, b, c, best, last",)  # never shown to the text encoder
    assert versions("a ||| b", keep_separator="") == ("a ||| b",)


def test_tags_are_left_out_as_often_as_asked_and_the_trigger_never():
    tags = [f"t{n}" for n in range(20)]
    made = [
        text
        for seed in range(20)
        for text in versions(
            ", ".join(["sks", *tags]), seed, tag_dropout=0.25, caption_variants=64, trigger="sks"
        )
    ]
    assert all("sks" in text.split(", ") for text in made)
    kept = sum(len(text.split(", ")) - 1 for text in made) / len(made) / 20
    assert kept == pytest.approx(0.75, abs=0.02)
    for text in made[:50]:
        shown = [tag for tag in text.split(", ") if tag != "sks"]
        assert shown == sorted(shown, key=tags.index)  # without shuffling the order stays


def test_other_separators():
    made = versions("a; b; c", shuffle_tags=True, caption_separator=";", caption_variants=16)
    assert {tuple(sorted(text.split("; "))) for text in made} == {("a", "b", "c")}
    assert versions("a, b", shuffle_tags=True, caption_separator=";") == ("a, b",)


def test_braces_choose_one():
    made = versions("a {black|white {cat|dog}} on a {mat|}", caption_variants=64)
    assert set(made) == {
        f"a {what} on a{where}" for what in ("black", "white cat", "white dog") for where in (" mat", "")
    }
    assert versions("a {black|white} cat", variations=False) == ("a {black|white} cat",)
    assert versions("f{x}") == ("f{x}",)


def test_the_class_word_goes_with_the_trigger():
    assert versions("on a mat", trigger="sks", class_word="cat") == ("sks cat, on a mat",)
    assert versions("a cat on a mat", trigger="sks", class_word="cat") == ("sks, a cat on a mat",)
    assert versions("a [trigger] on a mat", trigger="sks", class_word="cat") == ("a sks cat on a mat",)
    assert versions("a sks on a mat", trigger="sks", class_word="cat") == ("a sks on a mat",)
    assert versions("", trigger="sks", class_word="cat") == ("sks cat",)
    assert versions("a mat", class_word="cat") == ("a mat",)


@given(
    st.text("ab,|{}\n ", max_size=40), st.booleans(), st.floats(0, 0.9), st.integers(0, 3), st.integers(1, 8)
)
def test_what_is_shown_was_announced(caption, shuffle, dropout, keep, count):
    data = DataSection(
        shuffle_tags=shuffle, tag_dropout=dropout, keep_tokens=keep, caption_variants=count, trigger="zz"
    )
    one = item(caption)
    needed = captions_needed([one], data, 3)
    shown = [shown_caption(one, 0, data=data, seed=3, epoch=epoch) for epoch in range(20)]
    assert set(shown) <= set(needed)
    assert shown == [shown_caption(one, 0, data=data, seed=3, epoch=epoch) for epoch in range(20)]


def test_every_version_is_shown_about_alike_and_depends_on_its_place_alone():
    data = DataSection(shuffle_tags=True, caption_variants=8, caption_dropout=0.0)
    one = item("a, b, c, d\nq, r, s, t")
    shown = [shown_caption(one, 0, data=data, seed=3, epoch=epoch) for epoch in range(3200)]
    counts = Counter(shown)
    assert set(counts) == set(captions_needed([one], data, 3)) - {""}
    share = Counter(versions("a, b, c, d\nq, r, s, t", 3, shuffle_tags=True))
    assert all(abs(counts[text] / 3200 - share[text] / 16) < 0.03 for text in counts)
    assert shown != [shown_caption(one, 1, data=data, seed=3, epoch=epoch) for epoch in range(3200)]
    # another place in the set changes which is shown, not which there are
    assert captions_needed([item("a, b, c, d\nq, r, s, t", 7, "p0")], data, 3) == captions_needed(
        [one], data, 3
    )
    assert captions_needed([one], data, 4) != captions_needed([one], data, 3)
