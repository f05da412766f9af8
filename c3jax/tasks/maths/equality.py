r"""Whether two LaTeX answers say the same: rules for what has a structure, values for the formulas in it.

The first rule that applies decides. Numbers are equal if they are equal as fractions, and in no other case. Tuples
have an order and their brackets, lists and sets have none; intervals and inequalities are the numbers that they hold.
A name before the answer (x = 5), its unit and the base of its digits may be left out; what is there must not
contradict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from c3jax.tasks.maths import asking, equations, formula, latex, regions, units, words


def is_equal(expected: str, answer: str, question: str) -> bool:
    """Decide whether an answer says what is expected.

    Args:
      expected, answer: tidy (`latex.tidy`).
      question: says what may be left out: units, options, the order of names, a base, percent.
    """
    joined = latex.join_thousands(expected)
    if joined != expected and answer.isdigit() and "separated by" in question:
        return False  # 2,100 are two values
    if _squeeze(joined) == _squeeze(latex.join_thousands(answer)):
        return True
    for rule in _RULES:
        decision = rule(expected, answer, question)
        if decision is not None:
            return decision
    expected, answer = (_EXPONENT.sub(r"\1 \\cdot 10^{\2}", latex.join_thousands(text)) for text in (expected, answer))
    return formula.is_equal(expected, answer) or words.is_same_text(expected, answer, question)


_EXPONENT = re.compile(r"^(-?[0-9.]+)[eE]\+?(-?[0-9]{1,2})$")  # as Python writes a number


def _squeeze(text: str) -> str:
    return re.sub(r"(?<![0-9]) +| +(?![0-9])", "", text)  # 3 4 is not 34


# --------------------------------------------------------------------------------------------------------------------
# Rules. Each decides, or gives None where it does not apply.


def _match_remainders(expected: str, answer: str, question: str) -> bool | None:
    r"""Read 2 \pmod 7 and 2^{10} \equiv 2 \pmod 7 as 2, where a remainder is asked for."""
    found = _REMAINDER.fullmatch(answer)
    if found is None or r"\pmod" in expected or not _ASKED_REMAINDER.search(question):
        return None
    asked = {number for numbers in _ASKED_MODULUS.findall(question) for number in numbers}
    if asked and not set(re.findall("[0-9]+", found["modulus"])) <= asked:
        return False
    return is_equal(expected, found["rest"].strip(), question)


_REMAINDER = re.compile(
    r"(?:[^,=]*\\equiv)?(?P<rest>[^,=]*?)(?:\\pmod ?|\( ?\\?mod |\\mod |\\bmod )(?P<modulus>[^,=]*)"
)
_ASKED_MODULUS = re.compile(r"(?i)(?:divided by|modulo|\\?[pb]?mod) ?[${]*([0-9]+)|除以([0-9]+)")
_ASKED_REMAINDER = re.compile(r"(?i)remainder|residue|modulo|\\[pb]?mod|units digit|last (?:[a-z]+ )?digits?|余|个位")


def _match_restated(expected: str, answer: str, question: str) -> bool | None:
    """Read 两地相距 120 千米, "Mary is 14" as 120 千米, 14, where the question says what stands before it."""
    rest = words.take_off_restated(answer, question)
    return None if rest is None else is_equal(expected, rest, question)


def _match_points(expected: str, answer: str, question: str) -> bool | None:
    """Read P(3, 4) as a point (3, 4) and its name."""
    is_named = re.fullmatch(r"[A-Z]['\d]* ?\([^()=]*,[^()=]*\)", answer) and expected.startswith("(")
    return is_equal(expected, answer[answer.index("(") :], question) if is_named else None


def _match_sayings(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = words.name_saying(expected), words.name_saying(answer)
    if wanted == "none" and answer.startswith(r"\{") and given != wanted:
        return False  # \{\emptyset\} holds something
    return wanted == given if wanted and given else None


def _match_options(expected: str, answer: str, question: str) -> bool | None:
    letters = [re.sub("[, ]", "", text) for text in (expected, answer) if re.fullmatch("[A-J](?:,? ?[A-J])+", text)]
    if len(letters) == 2 and ("," in expected) != ("," in answer):
        is_choice = re.search("(?i)all (?:of )?(?:the )?(?:correct|true|that apply)|statements", question)
        return sorted(letters[0]) == sorted(letters[1]) if is_choice else letters[0] == letters[1]
    wanted, given = words.read_option(expected), words.read_option(answer)
    option = wanted or given
    if option is None:
        return None
    text = words.find_options(question).get(option.letter)
    text = latex.tidy(text) if text else option.text
    if wanted is not None and given is not None:
        is_known = text and given.text
        is_same = is_equal(text, given.text, "") if is_known else words.is_remark(given.text)
        return wanted.letter == given.letter and is_same
    if not text or (option.text and not is_equal(text, option.text, "")):
        return None
    return is_equal(text, answer if given is None else expected, "") or None  # the option's text alone


def _match_equations(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = equations.read_equation(expected, question), equations.read_equation(answer, question)
    if wanted is None and given is None:
        return None
    if given is None:
        return is_equal(wanted.chains[-1][-1], answer, question) if wanted and wanted.name else None
    if wanted is None:
        return not given.is_part and _is_chain_of(expected, given, question)
    if equations.is_same_relation(expected, answer):
        return True
    given = equations.rename_argument(given, wanted)
    if wanted.name is None or equations.is_other_name(wanted.name, given.name or ""):
        return False
    return _is_chain_of(wanted.chains[-1][-1], given, question)


def _is_chain_of(value: str, given: equations.Equation, question: str) -> bool:
    """Whether all that is equal in an equation is the value; of what is rounded on, one side."""
    rounded = zip(given.chains, given.chains[1:], strict=False)
    if not all(equations.is_rounded(left[-1], right[0]) for left, right in rounded):
        return False
    return any(
        is_equal(value, chain[-1], question)
        # What stands between a name and the value may be a formula in other names: A = \pi r^2 = 9\pi.
        and all(
            is_equal(value, side, question)
            or formula.is_equal(chain[-1], side)
            or equations.is_percentage(chain[-1], side)
            or equations.is_begun(chain[-1], side)
            for side in chain[:-1]
            if not given.name or equations.is_constant(side.removesuffix("%"))
        )
        for chain in given.chains
    )


def _match_numbers(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = latex.parse_number(expected), latex.parse_number(answer)
    if wanted is None or given is None:
        return None
    if wanted.is_percent == given.is_percent:
        return wanted.value == given.value
    if wanted.is_percent:  # the sign may be left out, or worked out
        return given.value in (wanted.value, wanted.value / 100)
    asked = " ".join(re.split(r"[.?!] ", question)[-2:]).replace("$", "")  # the last two sentences
    asks_percent = re.search(r"(?i)(?<![0-9])(?<![0-9][ \\])(?:percent|\\?%)|百分", asked) is not None  # not 50%
    if asks_percent and abs(wanted.value) > 1:
        return given.value == wanted.value  # 2500% is no 25, where it is asked how many percent
    return given.value / 100 == wanted.value or (asks_percent and given.value == wanted.value)


def _match_regions(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = regions.read_region(expected), regions.read_region(answer)
    if wanted is None and given is None:
        return None
    wanted, given = wanted or regions.read_points(expected), given or regions.read_points(answer)
    return None if wanted is None or given is None else regions.is_equal(wanted, given)


def _match_named(expected: str, answer: str, question: str) -> bool | None:
    """Compare x = 3, y = -2 and (y, x) = (-2, 3) with each other, or with tuples, in the order of the question."""
    wanted, given = equations.read_named(expected), equations.read_named(answer)
    named = wanted or given
    if named is None or (wanted and given and wanted[0].keys() != given[0].keys()):
        return None if named is None else False
    names = named[0].keys()
    order = equations.order_names(answer if given else expected, names, question)
    sides = []
    for text, named in ((expected, wanted), (answer, given)):
        if named is None and not all(part.startswith("(") for part in latex.split_top(text, ",")):
            # A set, an interval; x = 5, y = -2 are no two values of one name.
            known = {equations.is_in_question(name, question) for name in names}
            is_stray = text.startswith(r"\{") or known != {True}
            return False if is_stray and len({name[0] for name in names}) > 1 else None
        sides.append(text if named is None else ", ".join(_write_tuple(values, order) for values in named))
    return is_equal(sides[0], sides[1], question)


def _write_tuple(values: Mapping[str, str], order: Sequence[str]) -> str:
    return f"({', '.join(values[name].removeprefix('+') for name in order)})"


def _is_sequence_equal(expected: Sequence[str], answer: Sequence[str], question: str) -> bool:
    return len(expected) == len(answer) and all(
        is_equal(wanted.removeprefix("+"), given.removeprefix("+"), question)
        for wanted, given in zip(expected, answer, strict=True)
    )


def _match_lists(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = _read_list(latex.join_thousands(expected)), _read_list(latex.join_thousands(answer))
    if (wanted, given) == ([latex.join_thousands(expected)], [latex.join_thousands(answer)]):
        return None
    is_list = (
        len(wanted) > 2
        or (len(wanted) == 2 and answer.startswith(r"\{"))
        or re.search("(?i)separate|list|all (?:[a-z]+ )*values", question)
    )
    if len(wanted) != len(given) and is_list:
        wanted, given = _read_list(expected), _read_list(answer)  # 10,100 may be a list
    if len(wanted) != len(given):
        return False
    left = list(given)
    for element in wanted:  # equality holds between all or none of those that it joins
        index = next((index for index, other in enumerate(left) if is_equal(element, other, question)), None)
        if index is None:
            return False
        del left[index]
    return True


def _read_list(text: str) -> list[str]:
    r"""The elements of a list or a set; one that says \pm is two."""
    enclosed = latex.split_enclosed(text)
    parts = enclosed.parts if enclosed is not None and enclosed.left == r"\{" else latex.split_top(text, ",")
    return [element for part in parts for element in _expand_sign(part)]


def _expand_sign(text: str) -> list[str]:
    text = text.replace(r"\mp", r"\pm") if text.count(r"\mp") == 1 and r"\pm" not in text else text
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", sign).strip().removeprefix("+").strip() for sign in "+-"]


def _match_enclosed(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = latex.split_enclosed(expected), latex.split_enclosed(answer)
    if wanted is None and given is None:
        return None
    if r"\begin" in expected:
        return None  # a column, which may be written ⟨1, 2⟩
    is_point = [enclosed is not None and len(enclosed.parts) > 1 for enclosed in (wanted, given)]
    if wanted is not None and given is not None and any(is_point):
        same = (wanted.left, wanted.right) == (given.left, given.right)
        return same and _is_sequence_equal(wanted.parts, given.parts, question)
    if any(is_point):
        return False
    # Brackets round one thing only hold it together.
    inner = [whole if part is None else part.parts[0] for whole, part in ((expected, wanted), (answer, given))]
    return is_equal(inner[0], inner[1], question)


_MATRIX = re.compile(
    r"(?P<factor>[^(\[]*?)(?P<left>[(\[]?) ?\\begin ?\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}(?: ?\{[clr| ]*\})?"
    r"(?P<inside>.*)\\end ?\{(?P=kind)\} ?(?P<right>[)\]]?)"
)


def _read_matrix(text: str) -> list[list[str]] | None:
    text = re.sub(r"^\\binom ?\{([^{}]*)\} ?\{([^{}]*)\}$", r"⟨\1, \2⟩", text)
    found = _MATRIX.fullmatch(text)
    if text.startswith("⟨"):  # a column
        enclosed = latex.split_enclosed(text)
        return [[part] for part in enclosed.parts] if enclosed else None
    if found is None or r"\begin" in found["inside"] or bool(found["left"]) != bool(found["right"]):
        return None
    rows = [row for row in found["inside"].split(r"\\") if row.strip()]
    factor = f"({re.sub('^ ?- ?$', '-1', found['factor'])})" if found["factor"] else ""
    return [[f"{factor}({cell})" if factor else cell.strip() for cell in row.split("&")] for row in rows]


def _match_matrices(expected: str, answer: str, question: str) -> bool | None:
    if r"\begin" not in expected + answer:
        return None
    wanted, given = _read_matrix(expected), _read_matrix(answer)
    if wanted is None or given is None:
        return False
    rows = zip(wanted, given, strict=False)
    return len(wanted) == len(given) and all(_is_sequence_equal(row, other, question) for row, other in rows)


_BASED = re.compile(r"(?P<digits>[0-9A-F]+(?:\.[0-9A-F]+)?) *(?:_ *base|_|base) *(?P<base>[0-9]{1,2}|[a-z]+)")
_ASKED_BASE = re.compile(r"(?i)(?:in|to) base[- ]\$?([0-9]{1,2}|[a-z]+)|(binary|octal|hexadecimal)")
_NAMED_BASES = {"binary": "2", "octal": "8", "hexadecimal": "16"}


def _match_bases(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = (_BASED.fullmatch(re.sub(r"\\text|[{}()]", "", text).strip()) for text in (expected, answer))
    if wanted is None and given is None:
        return None
    digits = [whole if part is None else part["digits"] for whole, part in ((expected, wanted), (answer, given))]
    bases = ["" if part is None else words.to_digits(part["base"]) for part in (wanted, given)]
    if wanted is not None:
        return digits[0] == digits[1] and bases[1] in ("", bases[0])
    asked = {words.to_digits(base) or _NAMED_BASES[name.lower()] for base, name in _ASKED_BASE.findall(question)}
    is_number = len(digits[1]) > 1 and (digits[1] + bases[1]).isdigit() and int(max(digits[1])) < int(bases[1]) <= 10
    if asked or not is_number:
        return digits[0] == digits[1] and bases[1] in asked
    return formula.is_equal(expected, str(int(digits[1], int(bases[1]))))  # 101_2 is 5


_TIME = re.compile(r"(?P<hour>[0-9]{1,2}):[0-5][0-9](?::[0-5][0-9])?(?P<half>.*)")
_HALF_DAY = re.compile(r"(?i) ?[ap]\.? ?m\.?$")


def _match_ratios(expected: str, answer: str, question: str) -> bool | None:
    if ":" in expected or "ratio" in question.lower():
        answer = re.sub("(?<=[0-9])比(?=[0-9])", ":", answer)
        answer = re.sub(r"(?<=[0-9]) ?\\text\{ ?[a-z]+ to ?\} ?([0-9]+) ?\\text\{ ?[a-z]+ ?\}$", r":\1", answer)
        answer = re.sub(r"(?<=[0-9a-z}]) (?:\\text\{ ?to ?\} ?|to )(?=[0-9a-z\\])", ":", answer)
    wanted, given = latex.split_top(expected, ":"), latex.split_top(answer, ":")
    if len(wanted) == len(given) == 1:
        return None
    times = _TIME.fullmatch(expected), _TIME.fullmatch(answer)
    if times[0] and times[1] and "ratio" not in question.lower():
        hour = int(times[1]["hour"])
        if not times[1]["half"] and 12 < hour < 24:  # 15:45 is 3:45 in the afternoon
            answer = f"{hour - 12}{answer[2:]} pm"
            return not re.search(r"(?i)a\.? ?m", times[0]["half"]) and is_equal(expected, answer, question)
        halves = [_HALF_DAY.sub("", re.sub(r"\\text|[{}]", "", text)).strip() for text in (expected, answer)]
        return True if "" in (times[0]["half"], times[1]["half"]) and halves[0] == halves[1] else None
    if len(wanted) == len(given):  # w : w' is g : g' if w g' = g w'
        pairs = zip(wanted, given, strict=True)
        return all(formula.is_equal(rf"({w}) \cdot ({given[0]})", rf"({g}) \cdot ({wanted[0]})") for w, g in pairs)
    fractions = [rf"\frac{{{parts[0]}}}{{{parts[1]}}}" if len(parts) == 2 else parts[0] for parts in (wanted, given)]
    is_fraction = re.search(r"\\frac|/", expected + answer) is not None
    return is_fraction and max(len(wanted), len(given)) == 2 and formula.is_equal(*fractions)


def _match_shares(expected: str, answer: str, question: str) -> bool | None:
    """Read 3 out of 8 as 3/8."""
    found = re.fullmatch(r"([0-9]+) ?(?:\\text\{ ?)?out of ?\}? ?([0-9]+)", answer)
    if found is None or expected.isdigit():
        return None
    return is_equal(expected, rf"\frac{{{found[1]}}}{{{found[2]}}}", question)


def _match_units(expected: str, answer: str, question: str) -> bool | None:
    wanted, given = units.read_measure(expected, question), units.read_measure(answer, question)
    # 5m is a product of names, and a length where the other side has such a unit.
    known, letters = wanted or given, units.read_letters(expected if wanted is None else answer)
    if known and letters and (head := units.convert(letters, known.unit)) and is_equal(head, known.head, question):
        return True
    if wanted is not None and given is not None:
        if asking.is_stray(given, wanted.unit, question):
            return False
        # Of a gold in millions, of nothing, the question says what is counted.
        head = units.convert(given, wanted.unit) if wanted.unit else asking.convert_to_asked(given, question)
        return head is not None and is_equal(wanted.head, head, question)
    if given is not None:
        head = asking.convert_to_asked(given, question)
        if given.smaller and _squeeze(answer) in _squeeze(latex.tidy(question)):
            return False  # 2 hours 30 minutes, where it is asked how many minutes they are
        return head is not None and is_equal(expected, head, question)
    if wanted is not None:
        is_angle = r"\circ" in answer and formula.is_equal(expected, answer)  # 30^\circ + 45^\circ
        return is_angle or is_equal(wanted.head, answer, question)
    if (letters := units.read_letters(answer)) and asking.is_asked(letters, question):
        return is_equal(expected, letters.head, question)  # 48 m^2, where it is asked how many square metres
    return None


def _match_relations(expected: str, answer: str, question: str) -> bool | None:
    return True if equations.is_same_relation(expected, answer) else None


_RULES = (
    _match_sayings,
    _match_remainders,
    _match_points,
    _match_restated,
    _match_options,
    _match_named,
    _match_equations,
    _match_numbers,
    _match_shares,
    _match_units,
    _match_regions,
    _match_lists,
    _match_enclosed,
    _match_matrices,
    _match_bases,
    _match_ratios,
    _match_relations,
)
