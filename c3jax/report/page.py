"""The page: a template, styles, scripts and data in one file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich.console import Console

from c3jax import __version__
from c3jax.report.curves import make_curves
from c3jax.report.embed import embed_json, make_policy
from c3jax.report.notes import list_notes
from c3jax.report.overview import make_overview
from c3jax.report.sources import open_sources
from c3jax.report.transcripts import make_transcripts
from c3jax.run.files import explain_failure, save_whole
from c3jax.types import UserError

_STYLES = ("uplot.css", "base.css", "overview.css", "transcripts.css")
# In this order: each uses what those before it define.
_SCRIPTS = ("text.js", "trees.js", "curves.js", "list.js", "tree.js", "app.js")


def render_report(paths: Sequence[str], scored: Sequence[str] = ()) -> str:
    """The report of runs as one HTML page.

    Args:
      paths: run directories.
      scored: files that `c3jax score` wrote of the only run's trees, whose credit is shown beside the run's own.

    Returns:
      The page. It asks nothing of any network, and runs no code but its own.

    Raises:
      UserError: a path is no run that can be reported on.
    """
    groups = open_sources(paths)
    overview = make_overview(groups)
    transcripts = make_transcripts(groups, scored)
    styles = "".join(map(_load_asset, _STYLES))
    plotting = f"/*!\n{_load_asset('uplot.LICENSE')}*/\n{_load_asset('uplot.js')}"
    script = f'"use strict";\n(() => {{\n{"".join(map(_load_asset, _SCRIPTS))}}})();\n'
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_load_asset("page.html")).render(
        policy=make_policy(styles, (plotting, script)),
        styles=styles,
        scripts=[plotting, script],
        data=embed_json({"curves": make_curves(groups), "transcripts": transcripts}),
        overview=overview,
        groups=[group.name for group in groups],
        notes=list_notes(groups, overview.scores),
        runs=transcripts["runs"],
        version=__version__,
    )


def write_report(paths: Sequence[str], out: str | None, scored: Sequence[str], console: Console) -> int:
    """Write the report of runs to a file, and say where. Returns the exit code.

    Args:
      paths: run directories.
      out: the file; None is report.html in the only run's directory.
      scored: files of other methods' credit for the only run's trees.
      console: where it is said.

    Raises:
      UserError: a path is no run that can be reported on, or the file cannot be written.
    """
    target = _choose_target(paths, out)
    page = render_report(paths, scored)
    with explain_failure(f"--out {target}: cannot be written"):
        save_whole(target, page)
    console.print(f"{target}: {len(page.encode()) / 1e6:.1f} MB, opens in any browser", soft_wrap=True)
    return 0


def save_run_report(run: Path, console: Console) -> Path | None:
    """Write RUN/report.html. A run's results never depend on it: where it cannot be written, one line says why.

    Args:
      run: its directory.
      console: where that line is printed.

    Returns:
      The file, or None.
    """
    path = run / "report.html"
    try:
        save_whole(path, render_report([str(run)]))
        return path
    except Exception as error:  # a report is made of a run that is finished and saved; nothing of it may be lost here
        console.print(f"no report.html: {error} (c3jax report {run})", style="yellow", soft_wrap=True, markup=False)
        return None


def _choose_target(paths: Sequence[str], out: str | None) -> Path:
    if out is None:
        if len(paths) > 1:
            raise UserError(f"--out: expected a file for the report of {len(paths)} runs, got none")
        return Path(paths[0]) / "report.html"
    target = Path(out)
    if target.is_dir():
        raise UserError(f"--out {out}: expected a file, got a folder")
    if target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: expected a file whose name ends in .html")
    return target


@cache
def _load_asset(name: str) -> str:
    return (resources.files("c3jax.report.assets") / name).read_text(encoding="utf-8")
