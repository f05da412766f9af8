"""Published files: fetched by HTTPS or read from a folder, and checked against what is known of them."""

from __future__ import annotations

import gzip
import http.client
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

from c3jax.commands.prepare.sources import SourceFile
from c3jax.run.files import compute_sha256, explain_failure
from c3jax.types import UserError

_TIMEOUT_S = 60.0


class DataError(UserError):
    """One sentence on data that cannot be had or used."""


class Fetched(NamedTuple):
    """What a published file holds, unpacked."""

    origin: str  # where it was read, for messages
    content: bytes
    sha256: str  # of the content
    is_pinned: bool  # a hash that the table gives was found to agree


def fetch_file(name: str, file: SourceFile, folder: Path | None) -> Fetched:
    """Get a published file of a set, from a folder or from its address, and check it.

    Args:
      name: of the set.
      file: a row of the table of sources.
      folder: of copies, where it is NAME/FILE or FILE as published, or unpacked; None fetches it.

    Raises:
      DataError: it is not there, cannot be fetched or unpacked, or has another hash than the table gives.
    """
    if folder is None:
        origin, published = file.url, _download(name, file.url)
    else:
        path = _find(name, file, folder)
        origin = str(path)
        with explain_failure(f"{name}: {path} cannot be read", DataError):
            published = path.read_bytes()
    content, checks = published, [(file.sha256, published)]
    if file.name.endswith(".gz"):
        if origin.endswith(".gz"):
            content = _unpack(name, origin, published)
            checks.append((file.unpacked_sha256, content))
        else:
            checks = [(file.unpacked_sha256, content)]
    for expected, found in checks:
        if expected is not None and compute_sha256(found) != expected:
            raise DataError(f"{name}: {origin}: expected SHA-256 {expected}, got {compute_sha256(found)}")
    is_pinned = any(expected is not None for expected, _ in checks)
    return Fetched(origin, content, compute_sha256(content), is_pinned)


def _find(name: str, file: SourceFile, folder: Path) -> Path:
    names = [file.name, file.name.removesuffix(".gz")]
    paths = [parent / each for parent in (folder / name, folder) for each in dict.fromkeys(names)]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(f"{name}: expected {paths[0]} (from {file.url}), found no such file")
    return found


def _download(name: str, url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "c3jax"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:  # of which URLError, HTTPError and timeouts are kinds
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(
            f"{name}: {url} cannot be fetched ({reason}); fetch it elsewhere and give its folder by --from"
        ) from None


def _unpack(name: str, origin: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: {origin} is no whole gzip file ({error})") from None
