"""A1111's prompt syntax: what is read at which step, with which weight; any text at all, in linear time."""

from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.sampling.prompts.parse import MORE, MOST, Piece, Reading, parse
from studio.sampling.prompts.tags import AdapterTag, take_tags

LESS = 1 / MORE


def read(text: str, number: int = 0, steps: int = 20) -> Reading:
    """What is read of a prompt without AND."""
    ((reading, share),) = parse(text).at(number, steps)
    assert share == 1.0
    return reading


def flat(text: str, number: int = 0, steps: int = 20) -> list[tuple[str, float]]:
    return [(p.text, round(p.weight, 6)) for section in read(text, number, steps) for p in section]


def words(text: str, number: int = 0, steps: int = 20) -> str:
    return "".join(piece.text for section in read(text, number, steps) for piece in section)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (red) hat", [("a ", 1), ("red", 1.1), (" hat", 1)]),
        ("a ((red)) hat", [("a ", 1), ("red", 1.21), (" hat", 1)]),
        ("(a (red:1.5) hat:0.5)", [("a ", 0.5), ("red", 0.75), (" hat", 0.5)]),
        ("(red: 1.25 )", [("red", 1.25)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:+2.)", [("red", 2)]),
        ("(red:0)", [("red", 0)]),
        ("[red]", [("red", round(LESS, 6))]),
        ("[[red]]", [("red", round(LESS * LESS, 6))]),
        ("([red])", [("red", 1.0)]),
        ("(red:blue:1.3)", [("red:blue", 1.3)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:high)", [("red:high", 1.1)]),
        ("red:1.3", [("red:1.3", 1)]),
        ("a|b, 16:9", [("a|b, 16:9", 1)]),
        ("(a|b)", [("a|b", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"a \(red\) hat", [("a (red) hat", 1)]),
        (r"\(red:1.3\)", [("(red:1.3)", 1)]),
        (r"(a\):1.3)", [("a)", 1.3)]),
        (r"\[a\|b\] \\ c\:d", [("[a|b] \\ c:d", 1)]),
        # Brackets without partner are text.
        ("a :( hat", [("a :( hat", 1)]),
        ("a) hat", [("a) hat", 1)]),
        ("a (red hat", [("a (red hat", 1)]),
        ("(a [b) c]", [("a [b", 1.1), (" c]", 1)]),
        ("((a)", [("(", 1), ("a", 1.1)]),
        ("a]:[", [("a]:[", 1)]),
        ("", []),
        ("()", []),
    ],
)  # fmt: skip
def test_weights(text: str, expected: list[tuple[str, float]]):
    assert flat(text) == expected


@pytest.mark.parametrize(
    ("text", "steps", "said"),
    [
        ("a [red:blue:0.5] hat", 4, ["a red hat"] * 2 + ["a blue hat"] * 2),
        ("[red:blue:3]", 4, ["red"] * 3 + ["blue"]),
        ("[red:blue: 3 ]", 4, ["red"] * 3 + ["blue"]),
        ("[red:blue:1.0]", 4, ["red"] * 4),
        ("[red:blue:1]", 4, ["red"] + ["blue"] * 3),
        ("[red:blue:0]", 3, ["blue"] * 3),
        ("[red:blue:-2]", 3, ["blue"] * 3),
        ("[red:blue:99]", 3, ["red"] * 3),
        ("[red:blue:999999999]", 3, ["red"] * 3),
        ("x[red:0.5]", 4, ["x", "x", "xred", "xred"]),
        ("x[red::0.5]", 4, ["xred", "xred", "x", "x"]),
        ("[red:blue:.34]", 3, ["red", "blue", "blue"]),  # 1.02 steps
        ("[red|blue|green]", 5, ["red", "blue", "green", "red", "blue"]),
        ("a [red|] hat", 2, ["a red hat", "a  hat"]),
        ("[a:[b:c:0.75]:0.25]", 4, ["a", "b", "b", "c"]),
        ("[[a|b]:c:2]", 4, ["a", "b", "c", "c"]),
        ("[a:b|c]", 2, ["a:b", "c"]),
        ("[x:y:z:2]", 3, ["x:y", "x:y", "z"]),
        ("[(a):(b:1.5):1]", 2, ["a", "b"]),
        ("[a BREAK b:c:1]", 2, ["ab", "c"]),
        ("[a:b:soon]", 2, ["a:b:soon"] * 2),
        (r"[a\:b:c:1]", 2, ["a:b", "c"]),
    ],
)  # fmt: skip
def test_what_changes_on_the_way(text: str, steps: int, said: list[str]):
    assert [words(text, number, steps) for number in range(steps)] == said


def test_weights_inside_of_what_changes():
    text = "(a [b:(c:2):0.5]:1.5)"
    assert flat(text, 0, 2) == [("a b", 1.5)]
    assert flat(text, 1, 2) == [("a ", 1.5), ("c", 3.0)]
    assert parse(text).changes
    assert not parse("(a:1.2) [b]").changes


def test_break_starts_a_section():
    assert read("a BREAK b") == ((Piece("a"),), (Piece("b"),))
    assert read("(a BREAK b:1.2)") == ((Piece("a", 1.2),), (Piece("b", 1.2),))
    assert read("BREAK a") == ((), (Piece("a"),))
    assert read("a BREAK") == ((Piece("a"),),)
    assert read("a BREAKING BREAK_ break") == ((Piece("a BREAKING BREAK_ break"),),)
    assert read("") == ((),)


def test_and_joins_prompts_with_shares():
    plan = parse("a cat AND a (dog:1.2) :0.6 AND [x:y:1]: -1.5")
    assert [(reading[0], share) for reading, share in plan.at(0, 2)] == [
        ((Piece("a cat "),), 1.0),
        ((Piece(" a "), Piece("dog", 1.2), Piece(" ")), 0.6),
        ((Piece(" x"),), -1.5),
    ]
    assert [share for _, share in parse("SAND ANDROID and").at(0, 1)] == [1.0]
    assert words("shot in 16:9") == "shot in 16:9"  # no share without AND
    negative = parse("a AND b:2", composed=False)
    assert negative.at(0, 1) == ((((Piece("a AND b:2"),),), 1.0),)


@pytest.mark.parametrize(
    ("text", "plain", "tags"),
    [
        ("a cat <lora:ink:0.8>, red", "a cat, red", [AdapterTag("ink", 0.8)]),
        ("<lora:b:1><lyco:My File v1.2:-0.5>", "", [AdapterTag("b"), AdapterTag("My File v1.2", -0.5)]),
        ("<LORA:ink>", "", [AdapterTag("ink", 1.0)]),
        ("<lora:ink:0.3:0.7>", "", [AdapterTag("ink", 0.7, 0.3)]),
        ("<lora:ink:te=0.3:unet=0.7>", "", [AdapterTag("ink", 0.7, 0.3)]),
        ("<lora:ink:0.5:0.5>", "", [AdapterTag("ink", 0.5)]),
        ("a <lora:ink:strong> b", "a <lora:ink:strong> b", []),
        ("a <lora::1> b", "a <lora::1> b", []),
        ("a <lora:ink:1:2:3> b", "a <lora:ink:1:2:3> b", []),
        ("<hypernet:x:1> 1 < 2 > 0", "<hypernet:x:1> 1 < 2 > 0", []),
        (" kept as it is ", " kept as it is ", []),
    ],
)
def test_tags_leave_the_text(text: str, plain: str, tags: list[AdapterTag]):
    assert take_tags(text) == (plain, tuple(tags))
    assert parse(text).text == plain
    assert parse(text).tags == tuple(tags)


def test_deep_brackets_stay_finite():
    (piece,) = read("(" * 4000 + "a" + ")" * 4000)[0]
    assert piece.weight == MOST
    (piece,) = read("(a:99999999)")[0]
    assert piece.weight == MOST
    (piece,) = read("(" * 3 + "a" + ":-9999)" * 3)[0]
    assert abs(piece.weight) == MOST


SIGNS = st.lists(
    st.sampled_from([*"()[]:|\\<>{}0.15ab ,\n", "AND", " BREAK ", "<lora:a:1>"]), max_size=60
).map("".join)
PLAIN = st.text(st.characters(exclude_characters="()[]\\<")).filter(
    lambda text: "AND" not in text and "BREAK" not in text
)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(SIGNS, st.text(max_size=200)), number=st.integers(0, 9), steps=st.integers(1, 9))
def test_any_text_is_a_prompt(text: str, number: int, steps: int):
    plan = parse(text)
    for reading, share in plan.at(number, steps):
        assert reading
        assert abs(share) <= MOST
        assert all(piece.text and abs(piece.weight) <= MOST for section in reading for piece in section)
        pairs = [pair for section in reading for pair in pairwise(section)]
        assert all(one.weight != two.weight for one, two in pairs)
    assert hash(plan) == hash(parse(text))


@settings(max_examples=200, deadline=None)
@given(text=PLAIN)
def test_text_without_syntax_is_one_piece(text: str):
    assert read(text) == (((Piece(text),) if text else ()),)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("()[]ab :|\\"), max_size=40))
def test_escaped_text_says_itself(text: str):
    escaped = "".join(f"\\{sign}" if sign in "()[]:|\\" else sign for sign in text)
    assert words(escaped) == text


@pytest.mark.parametrize(
    "unit",
    ["(", ")", "[", "]", "([", "(a", "(a:", "[a:b:", "[a|", ":", "|", "\\", "(a:1.1)", "[a:b:0.5]", "[a|b]",
     " ", "BREAK ", " AND a:1", "<lora:", "<lora:a:1>", "(:)", ":(", "[[a:", "a:0.5]", "1",
     "((a:1.1", ":1)", "x"],
)  # fmt: skip
def test_ten_thousand_characters_take_a_moment(unit: str):
    """Less than 100 ms each, and no more than in proportion to their length."""
    assert read_within(0.1, (unit * 10_000)[:10_000])
    assert read_within(0.8, (unit * 80_000)[:80_000])


def read_within(seconds: float, text: str, step: int = 1, steps: int = 2) -> bool:
    """Whether it takes less CPU time in one try of three: a look for garbage may fall into one."""
    for _ in range(3):
        start = process_time()
        parse(text).at(step, steps)
        if process_time() - start < seconds:
            return True
    return False


@pytest.mark.parametrize(
    ("start", "end"), [("(", ")"), ("[", "]"), ("(", ":1.2)"), ("[a:", ":0.5]"), ("[a|", "]"), ("[", ":1]")]
)
def test_nested_brackets_take_a_moment(start: str, end: str):
    count = 10_000 // (len(start) + len(end))
    assert read_within(0.1, start * count + "x" + end * count, 0, 20)
