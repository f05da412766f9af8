"""Writing a file whole or not at all, and the hash by which a file is known."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c3jax.types import UserError

PARTIAL = ".partial"  # how the names of files end that were not finished


@contextmanager
def explain_failure(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn what the disk refuses in the block into one sentence for the user.

    Args:
      what: could not be done.
      kind: of the error.

    Raises:
      UserError: of this kind, `what` with the system's reason in parentheses.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what} ({error.strerror})") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it becomes `path` when the block ends, and is removed where the block raises.

    A link is written through, and what is no ordinary file (a terminal, /dev/null) is written to itself. The folder is
    made. A process killed meanwhile leaves `path` as it was, and beside it a hidden file that ends in `.partial`.

    Raises:
      OSError: the folder cannot be made or the file cannot be put in its place.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that nothing that lies there is taken for ours, nor ours for another process's.
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder, so that a process killed meanwhile leaves the whole file or the one before."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file of any size, in hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compute_sha256(content: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
