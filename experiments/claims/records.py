"""What was measured for each claim, on disk: one JSON file a claim, written whole when the claim is done."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pydantic

from c3jax.analysis.tables import to_json
from c3jax.run.files import save_whole
from c3jax.schema import Section
from c3jax.types import UserError
from experiments.claims.claim import Claim, Scale


class Record(Section):
    """The measurement of one claim."""

    name: str
    scale: Scale
    seconds: float
    rows: list[dict[str, Any]] = pydantic.Field(min_length=1)


def locate_record(folder: Path, claim: Claim) -> Path:
    """The file of a claim's measurement."""
    return folder / f"{claim.name}.json"


def save_record(folder: Path, claim: Claim, scale: Scale, seconds: float, rows: list[dict[str, Any]]) -> None:
    """Write what was measured, whole or not at all; numbers to six digits, a row a line."""
    head = {"name": claim.name, "scale": scale.model_dump(), "seconds": round(seconds, 1)}
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "rows": ' + to_json(rows).rstrip() + "}\n"
    save_whole(locate_record(folder, claim), text)


def load_record(folder: Path, claim: Claim) -> Record:
    """Read back what `save_record` wrote; null comes back as NaN. Raises UserError naming the file."""
    path = locate_record(folder, claim)
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: expected recorded results, cannot be read ({error.strerror})") from None
    except pydantic.ValidationError:
        raise UserError(f"{path}: expected the scale, seconds and rows of a claim, got something else") from None
    if record.name != claim.name:
        raise UserError(f"{path}: expected the measurement of {claim.name}, got that of {record.name}")
    rows = [{name: math.nan if cell is None else cell for name, cell in row.items()} for row in record.rows]
    return record.model_copy(update={"rows": rows})
