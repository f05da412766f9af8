"""Public sets written down in our own record, with a card that says where they are from and what was left out.

A set is a folder: a JSONL file for each split, and card.json. It is written whole or not at all, and the same files
give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from c3jax.commands.prepare.fetch import DataError, Fetched, fetch_file
from c3jax.commands.prepare.sources import SOURCES, Source
from c3jax.run.files import compute_sha256, explain_failure
from c3jax.tasks.jsonl import Row, parse_rows
from c3jax.tasks.task import Prepare, find_task
from c3jax.types import Problem, UserError

_CARD = "card.json"
_REPEATED, _UNANSWERED = "its id is that of a row before it", "published without an answer"


class _Split(NamedTuple):
    """The problems of one split, and how many rows were published for it."""

    problems: list[Problem]
    published: int


def prepare_set(name: str, folder: Path | None, target: Path, sources: Mapping[str, Source] = SOURCES) -> str:
    """Prepare one set in `target`/`name`, or check the one that is there against its card.

    Args:
      name: a row of the table of sources.
      folder: where copies of the published files lie; None fetches them.
      target: the folder of all prepared sets.

    Returns:
      One line on what there is now.

    Raises:
      DataError: there is no such set, a file cannot be had or is another than is known, the set is not what the table
        says of it, what is there is not what its card says, or the disk refuses.
      TaskError: a row is malformed; the file, the line and the reason are named.
    """
    if name not in sources:
        raise DataError(f"NAME: expected all or one of {', '.join(sources)}, got {name!r}")
    source, kept = sources[name], target / name
    if kept.exists() or kept.is_symlink():
        card = _check_prepared(name, source, kept)
        return f"{_describe(name, card, kept)}; it was there, and its hashes agree"
    fetched = [fetch_file(name, file, folder) for file in source.files]
    splits, left_out = _read_splits(name, source, fetched)
    write = _find_prepare(source).write
    texts = {
        split: "".join(json.dumps(write(problem), ensure_ascii=False) + "\n" for problem in read.problems)
        for split, read in splits.items()
    }
    card = {
        "name": name,
        **{"task": source.task, "home": source.home, "revision": source.revision, "licence": source.licence},
        "files": [
            {"name": file.name, "url": file.url, "sha256_unpacked": got.sha256, "pinned": got.is_pinned}
            for file, got in zip(source.files, fetched, strict=True)
        ],
        "splits": {
            split: {
                "file": f"{split}.jsonl",
                "published": splits[split].published,
                "rows": len(splits[split].problems),
                "sha256": compute_sha256(text.encode()),
            }
            for split, text in texts.items()
        },
        "left_out": left_out,
    }
    _write_whole(name, kept, {f"{split}.jsonl": text for split, text in texts.items()}, card)
    return _describe(name, card, kept)


def prepare_sets(name: str, folder: Path | None, target: Path, show: Callable[[str], None]) -> None:
    """Prepare one set, or all, and show a line of each.

    Args:
      name: of a set, or all.
      folder, target: as for `prepare_set`.
      show: is given a line of each.

    Raises:
      UserError: as `prepare_set`; for all, when the others are done.
    """
    failed = []
    for each in SOURCES if name == "all" else [name]:
        try:
            show(prepare_set(each, folder, target))
        except UserError as error:
            if name != "all":
                raise
            show(str(error))
            failed.append(each)
    if failed:
        raise DataError(f"all: {len(failed)} of {len(SOURCES)} sets could not be prepared: {', '.join(failed)}")


def _describe(name: str, card: Mapping[str, Any], kept: Path) -> str:
    splits = ", ".join(f"{split} {facts['rows']:,}" for split, facts in card["splits"].items())
    notes = [f"left out {len(ids):,} ({reason})" for reason, ids in card["left_out"].items()]
    notes += [
        f"{file['name']} is not pinned: SHA-256 {file['sha256_unpacked']}"
        for file in card["files"]
        if not file["pinned"]
    ]
    return "; ".join([f"{name}: {splits} in {kept} ({card['licence']})", *notes])


# --------------------------------------------------------------------------------------------------------------------
# Rows


def _read_splits(
    name: str, source: Source, fetched: Sequence[Fetched]
) -> tuple[dict[str, _Split], dict[str, list[str]]]:
    """Sort rows into splits. Gives them, and the ids of the rows that were left out, by reason."""
    prepare = _find_prepare(source)
    splits = {split: _Split([], 0) for split in source.rows}
    left_out: dict[str, list[str]] = {}
    seen: set[str] = set()
    for file, got in zip(source.files, fetched, strict=True):
        for row in parse_rows(got.origin, got.content):
            split = file.split if isinstance(file.split, str) else file.split(row.fields)
            if split not in splits:
                raise DataError(f"{row.where}: expected a row of {' or '.join(splits)}, got one of {split!r}")
            splits[split] = splits[split]._replace(published=splits[split].published + 1)
            problem, reason = _read_problem(name, prepare, source, split, row)
            if reason is None and problem.id in seen:
                reason = _REPEATED
            seen.add(problem.id)
            if reason is None:
                splits[split].problems.append(problem)
            else:
                left_out.setdefault(reason, []).append(problem.id)
    for split, read in splits.items():
        if read.published != source.rows[split]:
            raise DataError(
                f"{name}: expected {source.rows[split]:,} rows of {split}, as {source.home} had at"
                f" {source.revision}, got {read.published:,}"
            )
        if not read.problems:
            raise DataError(f"{name}: expected rows of {split} with an answer, got none of {read.published:,}")
    return splits, left_out


def _read_problem(name: str, prepare: Prepare, source: Source, split: str, row: Row) -> tuple[Problem, str | None]:
    """A row's problem, and why it is left out, if it is. A row that gives no id is named by its index."""
    read = prepare.read(row)
    problem, reason = (Problem(row.index, "", "", ""), _UNANSWERED) if read is None else (read, None)
    reason = reason or source.left_out.get(problem.id)
    if not {"id", "unique_id", "task_id"} & {field.lower() for field in row.fields}:
        problem = problem._replace(id=f"{name}/{split}/{row.index}")
    return problem, reason


def _find_prepare(source: Source) -> Prepare:
    prepare = find_task(source.task).prepare
    assert prepare is not None  # the table names only tasks that have it
    return prepare


# --------------------------------------------------------------------------------------------------------------------
# The folder


def _write_whole(name: str, kept: Path, texts: Mapping[str, str], card: Mapping[str, Any]) -> None:
    """Write a folder and give it its name when all is in it."""
    part = kept.with_name(f".{kept.name}.part")
    with explain_failure(f"{name}: {kept} cannot be written", DataError):
        if part.exists():  # of a preparation that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)
        for file, text in texts.items():
            (part / file).write_text(text, encoding="utf-8", newline="\n")
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        (part / _CARD).write_text(text, encoding="utf-8", newline="\n")
        part.rename(kept)


def _check_prepared(name: str, source: Source, kept: Path) -> dict[str, Any]:
    """The card of a set that is there. Raises DataError where the set is not what the card or the table says."""
    path = kept / _CARD
    again = f"remove {kept} to prepare it again"
    try:
        card = json.loads(path.read_bytes())
        sha256s = {facts["file"]: facts["sha256"] for facts in card["splits"].values()}
        from_table = {file.name: file.url for file in source.files}
        is_current = card["revision"] == source.revision and from_table == {
            file["name"]: file["url"] for file in card["files"]
        }
    except OSError as error:
        raise DataError(f"{name}: {path} cannot be read ({error.strerror}); {again}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{name}: {path} is no card of a prepared set; {again}") from None
    if not is_current:
        raise DataError(f"{name}: {kept} was prepared from revision {card['revision']}, now {source.revision}; {again}")
    for file, expected in sha256s.items():
        try:
            got = compute_sha256((kept / file).read_bytes())
        except OSError as error:
            raise DataError(f"{name}: {kept / file} cannot be read ({error.strerror}); {again}") from None
        if got != expected:
            raise DataError(f"{name}: {kept / file}: expected SHA-256 {expected}, as its card says, got {got}; {again}")
    return card
