"""Which brackets of a text belong together, in linear time and without recursion."""

from collections import Counter
from collections.abc import Mapping, Sequence

ROUND, SQUARE, CURLY = {"(": ")"}, {"[": "]"}, {"{": "}"}


def matched(tokens: Sequence[str], pairs: Mapping[str, str]) -> dict[int, int]:
    """Index of the partner of each matched bracket, both ways; what has none is missing: it is plain text.

    A closing bracket takes the nearest open one of its kind; brackets of other kinds that were opened after
    that one stay without partner, as in `(a [b) c]`.
    """
    opening = {close: start for start, close in pairs.items()}
    partner: dict[int, int] = {}
    stack: list[int] = []
    waiting: Counter[str] = Counter()
    for index, token in enumerate(tokens):
        if token in pairs:
            stack.append(index)
            waiting[token] += 1
        elif token in opening and waiting[opening[token]]:
            wanted = opening[token]
            while True:
                start = stack.pop()
                waiting[tokens[start]] -= 1
                if tokens[start] == wanted:
                    break
            partner[start], partner[index] = index, start
    return partner
