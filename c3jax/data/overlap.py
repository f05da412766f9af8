r"""Problems that two sets share: word for word, but for their spelling, or in a run of thirteen words.

Questions are compared, never answers. Four kinds, the first that holds of a pair:
  exact       the same characters
  normalised  the same words, numbers and signs, whatever their case, spacing, punctuation and LaTeX layout
  reworded    the same key (see `c3jax.data.gate`: MBPP+ rewords MBPP's problems)
  ngram       a run of 13 words and numbers in common (Brown et al. 2020, arXiv 2005.14165, appendix C), unless more
              than 10 training problems have it: then it is a phrase and no problem
A question of fewer than 13 words has no such run.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

GRAM_WORDS = 13
COMMONEST_GRAM = 10  # training problems

Kind = Literal["exact", "normalised", "reworded", "ngram"]


class Entry(NamedTuple):
    """What is compared of a problem."""

    id: str
    text: str  # of the question
    key: str | None = None  # what two problems have in common only if they are one, reworded


class Hit(NamedTuple):
    """A training problem, and the first held-out problem of a set with which it shares the most."""

    kind: Kind
    train: str  # its id
    heldout: str  # its id
    heldout_set: str


def find_overlaps(train: Sequence[Entry], heldout: Mapping[str, Sequence[Entry]], has_grams: bool = True) -> list[Hit]:
    """Find the training problems that are in held-out sets, which are given by name.

    Returns:
      One hit at most for a training problem and a held-out set, by the order of the training problems in each set.
    """
    words_of_train = [split_words(entry.text) for entry in train]
    hits = []
    for name, entries in heldout.items():
        index = _make_index(entries, has_grams)
        shared = [[gram for gram in _list_grams(words) if gram in index["ngram"]] for words in words_of_train]
        carriers = Counter(gram for grams in shared for gram in set(grams))
        for entry, words, grams in zip(train, words_of_train, shared, strict=True):
            telling = next((gram for gram in grams if carriers[gram] <= COMMONEST_GRAM), None)
            sought = dict(zip(get_args(Kind), (entry.text, " ".join(words), entry.key, telling), strict=True))
            kind = next((kind for kind, text in sought.items() if text in index[kind]), None)
            if kind is not None:
                hits.append(Hit(kind, entry.id, index[kind][sought[kind]], name))
    return hits


def _make_index(entries: Sequence[Entry], has_grams: bool) -> dict[Kind, dict[str | None, str]]:
    """The id of the first problem that has what two problems may share, by kind."""
    index: dict[Kind, dict[str | None, str]] = {"exact": {}, "normalised": {}, "reworded": {}, "ngram": {}}
    for entry in entries:
        words = split_words(entry.text)
        index["exact"].setdefault(entry.text, entry.id)
        index["normalised"].setdefault(" ".join(words), entry.id)
        if entry.key is not None:
            index["reworded"].setdefault(entry.key, entry.id)
        for gram in _list_grams(words) if has_grams else ():
            index["ngram"].setdefault(gram, entry.id)
    index["normalised"].pop("", None)  # a question of nothing but punctuation is like no other
    return index


_LAYOUT = re.compile(
    r"\\\\|\\[,;:!> ()\[\]]|[${}~`\"'“”‘’]"
    r"|\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|q?quad|(?:thin|en)space"
    r"|text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf|tt)|operatorname|boldsymbol|rm|bf|it)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"\{,\}|(?<=[0-9]),(?:\\!)?(?=[0-9]{3}(?![0-9]))")
_HYPHEN = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})")  # and no minus
_LATEX = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\(le|ge)q(?:slant)?(?![A-Za-z])|\\(ne)q(?![A-Za-z])", r"\\\1\2 "),
    )
)
# Words, numbers, Chinese characters one by one, and the signs that make one formula another (! after what it can be
# a factorial of).
_WORD = re.compile(
    r"[0-9]+(?:\.[0-9]+)?|[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|[-+*/=<>^|%()\[\]]|(?<=[0-9)])!|(?<=\W[a-z])!|[^\x00-\x7f\w\s。、]"
)


def split_words(text: str) -> list[str]:
    r"""Split a question into its words, numbers and signs, in one spelling.

    Out go case, spacing, punctuation (but for a decimal point), dollar signs, braces, fonts, \left and \right, and
    spaces of LaTeX; \dfrac12 is \frac{1}{2}, \leq is \le, and 1,000 is 1000.
    """
    text = _HYPHEN.sub(" ", _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).replace("−", "-")))
    for pattern, plain in _LATEX if "\\" in text else ():
        text = pattern.sub(plain, text)
    return _WORD.findall(_LAYOUT.sub(" ", text).lower())


def _list_grams(words: Sequence[str]) -> list[str]:
    spoken = [word for word in words if word[0].isalnum()]
    return [" ".join(spoken[start : start + GRAM_WORDS]) for start in range(len(spoken) - GRAM_WORDS + 1)]
