"""What was measured for each claim, on disk: one JSON file a claim, written whole when the claim is done."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3jax.analysis.statistics import correct_holm
from c3jax.analysis.tables import Row, to_json
from c3jax.lab.claims.claim import Claim, Scale
from c3jax.run.files import save_whole
from c3jax.types import UserError


class Record(NamedTuple):
    """The measurement of one claim."""

    scale: Scale
    seconds: float
    rows: tuple[Row, ...]


def locate_record(folder: Path, claim: Claim) -> Path:
    """The file of a claim's measurement."""
    return folder / f"{claim.number:02d}-{claim.name}.json"


def save_record(folder: Path, claim: Claim, record: Record) -> None:
    """Write what was measured, whole or not at all; numbers to six digits, a row a line."""
    head = {
        "claim": claim.number,
        "name": claim.name,
        "scale": record.scale._asdict(),
        "seconds": round(record.seconds, 1),
    }
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "rows": ' + to_json(record.rows).rstrip() + "}\n"
    save_whole(locate_record(folder, claim), text)


def load_record(folder: Path, claim: Claim) -> Record:
    """Read back what `save_record` wrote; null comes back as NaN. Raises UserError naming the file."""
    path = locate_record(folder, claim)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: expected recorded results, cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: expected recorded results as JSON, got something else") from None
    if not _is_record(content, claim):
        raise UserError(f"{path}: expected the rows, scale and seconds of claim {claim.number}, got other JSON")
    rows = tuple({name: math.nan if cell is None else cell for name, cell in row.items()} for row in content["rows"])
    return Record(Scale(**content["scale"]), content["seconds"], rows)


def _is_record(content: Any, claim: Claim) -> bool:
    if not isinstance(content, dict) or content.get("claim") != claim.number:
        return False
    rows, scale = content.get("rows"), content.get("scale")
    return (
        isinstance(rows, list)
        and len(rows) > 0
        and all(isinstance(row, dict) for row in rows)
        and isinstance(scale, dict)
        and set(scale) == set(Scale._fields)
        and isinstance(content.get("seconds"), int | float)
    )


def correct_rows(all_rows: Sequence[Sequence[Row]]) -> list[list[dict[str, Any]]]:
    """The rows of all claims with Holm's adjusted p-values beside the raw ones, corrected over all of them together."""
    p_M = np.array([row.get("p", math.nan) for rows in all_rows for row in rows], np.float64)
    is_test_M = np.isfinite(p_M)
    adjusted_M = np.full(len(p_M), math.nan)
    adjusted_M[is_test_M] = correct_holm(p_M[is_test_M])
    adjusted = iter(adjusted_M.tolist())
    return [[{**row, "p_holm": next(adjusted)} for row in rows] for rows in all_rows]
