"""Which part of a word is enough to find it by (SQLite).

FTS5 looks for a word as a phrase of runs of three letters, and compares places for each run and row. When
every word that has one of these runs holds the whole word that is looked for, that run alone finds the same
adapters. `adapter_words` has the words of all texts, and they are few beside the texts.
"""

import json

from sqlalchemy.orm import Session

from registry.fulltext import LAST_LETTER, SEPARATORS, phrase

RUN = 3  # letters
MOST = 200  # words that are looked at; a run that is in more of them tells little
_KNOWN = "SELECT doc, term FROM adapter_words_terms WHERE term IN (SELECT value FROM json_each(?))"
_WITH = """SELECT word FROM adapter_words
    WHERE id IN (SELECT rowid FROM adapter_words_fts WHERE adapter_words_fts MATCH ?)"""


def telling(session: Session, word: str) -> str:
    """A short part of `word` that stands in no text but those with `word`; "" when no text has it.

    Args:
        session: Of a database with the index of words.
        word: Folded, without white space, three letters or more.
    """
    if len(word) == RUN or max(word) > LAST_LETTER or not set(word).isdisjoint(SEPARATORS):
        return word  # no list of words is needed, or none is complete
    runs = {word[at : at + RUN] for at in range(len(word) - RUN + 1)}
    ask = session.connection().exec_driver_sql
    known = ask(_KNOWN, (json.dumps([*runs]),)).all()
    if len(known) < len(runs):
        return ""
    number, rarest = min(map(tuple, known))
    if number > MOST:
        return word
    others = [other for (other,) in ask(_WITH, (phrase(rarest),)) if word not in other]
    return _shortest(word, rarest, "\n".join(others)) if len(others) < number else ""


def _shortest(word: str, within: str, others: str) -> str:
    """The shortest part of `word` that has `within` and is not in `others`, or all of it."""
    for length in range(len(within), len(word)):
        for start in range(len(word) - length + 1):
            part = word[start : start + length]
            if within in part and part not in others:
                return part
    return word
