r"""A second opinion on a LaTeX answer: are two texts the same once each is brought to a normal form?

The rule that MATH's authors published (Hendrycks et al. 2021, math_equivalence.py), in few lines: it shares nothing
with the first rule (`c3jax.tasks.maths.equality`) and understands no mathematics. Where the two disagree, an answer was
written in a way that one of them cannot read, or the first was fooled.
"""

from __future__ import annotations

import re

_DELETIONS = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\\$|\$|\\?%|\^ ?\{?\\circ\}?|\\displaystyle"
    r"|\\(?:text|mbox|mathrm)\{ [^{}]*\}(?:\^\{?[0-9]\}?)?|(?<=[0-9])\\(?:text|mbox)\{[^{}]*\}(?:\^\{?[0-9]\}?)?$"
    r"|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\{,\}"
)
_REWRITES = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}", r"\1"),
        (r"^[A-Za-z]=|^[a-z]\([a-z]\)=|^[a-z]\\in", ""),
        (r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac([0-9])\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})([0-9])", r"\1{\2}"),
        (r"\\sqrt([0-9])", r"\\sqrt{\1}"),
        (r"^(-?)([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
        (r"(?<![0-9])\.(?=[0-9])", "0."),
        (r"(\.[0-9]*?)0+(?![0-9])", r"\1"),
        (r"\.(?![0-9])", ""),
        (r"^0\.5$", r"\\frac{1}{2}"),
    )
)


def is_same(expected: str, answer: str) -> bool:
    """Compare the normal forms of two answers, letter by letter."""
    return normalise(expected) == normalise(answer)


def normalise(text: str) -> str:
    """Bring an answer to its normal form."""
    text = re.sub(r"\s+", "", _DELETIONS.sub("", text.strip()))
    for pattern, plain in _REWRITES:
        text = pattern.sub(plain, text)
    return text
