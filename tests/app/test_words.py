"""Numbers and times in words; foreign text that stays text."""

from datetime import timedelta

import pytest

from registry.records import now
from studio.app.words import ago, duration, md, plural, printable, size, spoken
from trainers.recipe import recipe_fields


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.4, "0 s"), (59.4, "59 s"), (61, "1 min"), (3600, "1 h"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float | None, said: str):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"), [(12, "12 B"), (1500, "1.5 kB"), (123_400_000, "123 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(count: float, said: str):
    assert size(count) == said


def test_ages_and_plurals():
    assert ago(now() - timedelta(seconds=5)) == "just now"
    assert ago(now() - timedelta(hours=1, minutes=3)) == "1 hour ago"
    assert ago(now() - timedelta(days=9)) == "9 days ago"
    assert (plural(1, "picture"), plural(1200, "picture")) == ("1 picture", "1,200 pictures")


def test_markdown_of_foreign_text_is_escaped():
    assert md("**a** [b](c) `d`\n# e") == r"\*\*a\*\* \[b\]\(c\) \`d\` \# e"
    assert md(":smile: $x$ <b>") == r"\:smile\: \$x\$ \<b\>"


@pytest.mark.parametrize(
    "address", ["https://evil.example", "HTTP://evil.example", "www.evil.example", "a@b.example"]
)
def test_addresses_in_foreign_text_do_not_become_links(address: str):
    shown = md(address).replace("\\", "")
    assert address not in shown
    assert shown.replace("\N{WORD JOINER}", "") == address


def test_characters_that_rearrange_a_page_are_replaced():
    assert printable("a\u202eb\x1b[31m\x00c") == "a\ufffdb\ufffd[31m\ufffdc"


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("adapter.lokr_factor", "LoKr factor"),
        ("objective.snr_gamma", "SNR gamma"),
        ("train.ema_decay", "EMA decay"),
        ("train.num_threads", "Num threads"),
        ("tokens.lr", "Learning rate, new words"),
    ],
)
def test_labels_of_fields(key: str, label: str):
    assert spoken(key) == label


def test_no_label_is_an_abbreviation_or_used_twice_in_a_section():
    labels = [(key.partition(".")[0], spoken(key)) for key in recipe_fields()]
    assert not {"Lr", "Init", "Only", "Cfg", "Eps", "Until", "Rows"} & {label for _, label in labels}
    assert len(set(labels)) == len(labels)
