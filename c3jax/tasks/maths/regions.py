r"""Sets of real numbers in a normal form: intervals, unions, differences, inequalities in one variable."""

from __future__ import annotations

import re
from typing import NamedTuple

from c3jax.tasks.maths import formula, latex, values, words
from c3jax.tasks.maths.values import Value


class Piece(NamedTuple):
    """An interval, or a point."""

    low: Value
    has_low: bool
    high: Value
    has_high: bool


class Region(NamedTuple):
    """A set of real numbers: pieces of the line, of a variable where one is named."""

    variable: str | None
    pieces: tuple[Piece, ...]  # that do not touch, from left to right


_LOWEST, _HIGHEST = r"-\infty", r"\infty"
_RELATION = re.compile(r"(\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>)")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|phi)|f ?\([a-z]\)")
_DISTANCE = re.compile(r"\| ?([A-Za-z]) ?\| ?(<|>|\\[lg]e(?![a-z])) ?([^<>]+)")
_WITHIN = {">": r"\le", r"\ge": "<"}  # the numbers that are not so far away


def read_region(text: str) -> Region | None:
    """Read a set of real numbers; None for any other text, a list of numbers among them."""
    if words.name_saying(text) == "reals":
        return Region(None, _complement(()))
    for mark, combine in ((r"\cup", _unite), (r"\setminus", _subtract), ("-", _subtract), (r"\cap", _intersect)):
        parts = latex.split_top(text, mark)
        if len(parts) > 1:
            found = [read_region(part) or read_points(part) for part in parts]
            known = [region for region in found if region is not None]
            variables = {region.variable for region in known} - {None}
            if len(known) == len(parts) and len(variables) <= 1:
                return Region(next(iter(variables), None), combine(*(region.pieces for region in known)))
            if mark != "-":
                return None
    return _read_interval(text) or _read_conditions(text)


def read_points(text: str) -> Region | None:
    r"""Read \{1, 2\}, which alone is rather a list."""
    enclosed = latex.split_enclosed(text)
    if enclosed is None or enclosed.left != r"\{":
        return None
    points = [_make_piece("[", part, part, "]") for part in enclosed.parts]
    known = tuple(point for point in points if point is not None)
    return Region(None, _unite(known)) if len(known) == len(points) else None


def _read_interval(text: str) -> Region | None:
    enclosed = latex.split_enclosed(text)
    if enclosed is None or len(enclosed.parts) != 2 or enclosed.left not in "([":
        return None
    piece = _make_piece(enclosed.left, *enclosed.parts, enclosed.right)
    return Region(None, (piece,)) if piece and not values.is_close(piece.low, piece.high) else None


def _make_piece(left: str, low: str, high: str, right: str) -> Piece | None:
    ends = [_compute_end(end) for end in (low, high)]
    if ends[0] is None or ends[1] is None or ends[0] > ends[1]:
        return None
    return Piece(ends[0], left == "[", ends[1], right == "]")


def _compute_end(text: str) -> Value | None:
    infinity = re.fullmatch(r"([-+]?) ?\\infty", text.strip())
    if infinity:
        return values.to_real(float(f"{infinity[1]}inf"))
    value = formula.compute_somewhere(text)
    return values.to_real(value) if value is not None and values.is_real(value) else None


def _read_conditions(text: str) -> Region | None:
    """Read inequalities in one variable. Of several, all must hold, or any one where no number satisfies all."""
    first, *rest = latex.split_top(text, ",")
    regions = [_read_inequality(part) for part in (first, *rest)]
    if r"\ne" in first and rest and not any(regions[1:]):  # x \ne 1, 2
        variable = first.partition(r"\ne")[0]
        regions = [regions[0], *(_read_inequality(rf"{variable} \ne {part}") for part in rest)]
    known = [region for region in regions if region is not None]
    if not known or len(known) < len(regions) or len({region.variable for region in known}) > 1:
        return None
    pieces = [region.pieces for region in known]
    return Region(known[0].variable, _intersect(*pieces) or _unite(*pieces))


def _read_inequality(text: str) -> Region | None:
    distance = _DISTANCE.fullmatch(text)
    if distance:  # |x| < 3 is -3 < x < 3, |x| > 3 what is beyond
        variable, relation, end = distance.groups()
        inside = _read_inequality(
            rf"-({end}) {_WITHIN.get(relation, relation)} {variable} {_WITHIN.get(relation, relation)} {end}"
        )
        return inside._replace(pieces=_complement(inside.pieces)) if inside and relation in _WITHIN else inside
    first, *rest = (piece.strip() for piece in _RELATION.split(text))
    relations, sides = rest[0::2], [first, *rest[1::2]]
    indices = [index for index, side in enumerate(sides) if _VARIABLE.fullmatch(side)]
    if len(indices) != 1 or not 1 <= len(relations) <= 2 or not all(sides):
        return None
    index = indices[0]
    if relations == [r"\ne"]:
        hole = _make_piece("[", sides[1 - index], sides[1 - index], "]")
        return Region(sides[index], _complement((hole,))) if hole else None
    if relations[0] in (">", r"\ge"):  # turn it round, so that it rises from left to right
        relations = [{">": "<", r"\ge": r"\le"}.get(relation, ">") for relation in reversed(relations)]
        sides, index = sides[::-1], len(sides) - 1 - index
    if not set(relations) <= {"<", r"\le"} or (len(relations) == 2 and index != 1):
        return None
    has_low, has_high = index > 0, index < len(sides) - 1
    piece = _make_piece(
        "[" if has_low and relations[0] == r"\le" else "(",
        sides[0] if has_low else _LOWEST,
        sides[-1] if has_high else _HIGHEST,
        "]" if has_high and relations[-1] == r"\le" else ")",
    )
    return Region(sides[index], (piece,)) if piece else None


def is_equal(expected: Region, answer: Region) -> bool:
    """Decide whether two regions hold the same numbers, and are in the same variable if both name one."""
    if expected.variable and answer.variable and expected.variable != answer.variable:
        return False
    return len(expected.pieces) == len(answer.pieces) and all(
        wanted.has_low == given.has_low
        and wanted.has_high == given.has_high
        and values.is_close(wanted.low, given.low)
        and values.is_close(wanted.high, given.high)
        for wanted, given in zip(expected.pieces, answer.pieces, strict=True)
    )


# --------------------------------------------------------------------------------------------------------------------
# Algebra of sets

Pieces = tuple[Piece, ...]


def _unite(*sets: Pieces) -> Pieces:
    united: list[Piece] = []
    pieces = [piece for pieces in sets for piece in pieces]
    for piece in sorted(pieces, key=lambda piece: (piece.low, not piece.has_low)):
        last = united[-1] if united else None
        if last is None or last.high < piece.low or (last.high == piece.low and not (last.has_high or piece.has_low)):
            united.append(piece)
        elif (piece.high, piece.has_high) > (last.high, last.has_high):
            united[-1] = last._replace(high=piece.high, has_high=piece.has_high)
    return tuple(united)


def _complement(pieces: Pieces) -> Pieces:
    lows = [(values.to_real(float("-inf")), False), *((piece.high, not piece.has_high) for piece in pieces)]
    highs = [*((piece.low, not piece.has_low) for piece in pieces), (values.to_real(float("inf")), False)]
    gaps = (Piece(*low, *high) for low, high in zip(lows, highs, strict=True))
    return tuple(gap for gap in gaps if gap.low < gap.high or (gap.low == gap.high and gap.has_low and gap.has_high))


def _intersect(*sets: Pieces) -> Pieces:
    return _complement(_unite(*(_complement(_unite(pieces)) for pieces in sets)))


def _subtract(whole: Pieces, *holes: Pieces) -> Pieces:
    return _intersect(whole, _complement(_unite(*holes)))
