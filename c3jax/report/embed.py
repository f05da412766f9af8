"""Putting data and code into a page: JSON that cannot end its element, and hashes that let only its own code run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

# What could end a script element or begin a comment in it, and the two line ends that older JavaScript does not allow.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 has no bytes for


def embed_json(value: Any) -> str:
    """Data as JSON that stays one text wherever it stands in HTML.

    Args:
      value: of JSON's kinds; its numbers are finite.

    Returns:
      JSON without `<`, `>`, `&`, U+2028 and U+2029, which are written as escapes, and with U+FFFD for half characters.

    Raises:
      ValueError: for a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub("\ufffd", text).translate(_ESCAPES)


def make_policy(styles: str, scripts: tuple[str, ...]) -> str:
    """The content security policy of a page: its own style and scripts by their hashes, and nothing from anywhere.

    Args:
      styles: text of the style element.
      scripts: texts of the script elements that run.

    Returns:
      The value of the policy's meta element. Text that is made into markup by a script is refused, too.
    """
    rules = (
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, scripts))}",
        f"style-src {_hash(styles)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
