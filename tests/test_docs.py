"""The pages: links and anchors that resolve, commands that parse, a navigation and an API page that are whole."""

from __future__ import annotations

import html
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import c3jax
from c3jax.commands.parser import make_parser
from c3jax.config.fields import list_fields
from c3jax.config.file import find_config
from c3jax.config.overrides import split_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
FENCED = re.compile(r"^\s*(```|~~~).*?^\s*\1", re.DOTALL | re.MULTILINE)


def drop_code(text: str) -> str:
    """A page without its code blocks and code in lines, whose brackets are no links."""
    text = FENCED.sub("", text)
    kept = [line for line in text.split("\n") if not line.startswith("    ")]
    return re.sub(r"`[^`\n]*`", "", "\n".join(kept))


def list_anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them alike: words of letters and digits."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
    assert all("--" not in slug for slug in slugs if slug in SLUGS_LINKED)  # there the two differ
    return set(slugs)


def list_links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^()\s]+)\)", drop_code(path.read_text(encoding="utf-8")))
    return [html.unescape(link) for link in found if not re.match(r"[a-z]+:", link)]


SLUGS_LINKED = {link.partition("#")[2] for page in PAGES for link in list_links(page)} - {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_anchor_of_a_page_resolves(page):
    for link in list_links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and path.is_relative_to(ROOT), link
        if anchor:
            assert anchor in list_anchors(path), link


def test_every_page_that_is_spoken_of_is_there():
    """In sources, configs and scripts too: docs/NAME.md."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    spoken = {}
    for name in listed:
        if name.endswith((".py", ".md", ".yaml", ".yml", ".sh", ".sbatch", ".toml")):
            text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
            spoken |= dict.fromkeys(re.findall(r"(?<![\w/])docs/[a-z_/]+\.md\b", text), name)
    assert len(spoken) > 10
    assert {page: name for page, name in spoken.items() if not (ROOT / page).is_file()} == {}


def test_the_site_shows_every_page_once():
    def list_files(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        parts = node.values() if isinstance(node, dict) else node
        return [name for part in parts for name in list_files(part)]  # type: ignore[union-attr]

    shown = list_files(SITE["nav"])
    assert sorted(shown) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[3:])


def test_names_of_pages_become_links_of_the_site_and_code_does_not():
    [hook] = SITE["hooks"]
    spec = importlib.util.spec_from_file_location("link_pages", ROOT / hook)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Page:
        class file:
            src_uri = "runs/one.md"

    text = (
        "Read docs/data.md, faq.md, no_such.md, `docs/data.md`, [x](../faq.md).\n\n    docs/data.md\n```\nfaq.md\n```\n"
    )
    assert module.on_page_markdown(text, page=Page, config={"docs_dir": str(ROOT / "docs")}) == text.replace(
        "Read docs/data.md, faq.md,", "Read [data](../data.md), [faq](../faq.md),"
    )


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_is_built_without_a_warning(tmp_path):
    """Links and anchors as the generator finds them, and the API from the docstrings."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.parent.name for path in (tmp_path / "site").rglob("index.html")}
    assert {"diagnose", "api", "stories_smollm2"} <= pages


def test_the_page_of_the_api_has_every_public_name():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) == len(set(names))
    shown = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        shown.append(getattr(importlib.import_module(module), attribute))
    public = [name for name in c3jax.__all__ if name not in ("__version__", "train", "evaluate")]
    assert [name for name in public if not any(getattr(c3jax, name) is each for each in shown)] == []


@pytest.mark.parametrize("name", ["index", "first_run", "faq", "metrics"])
def test_commands_and_fields_of_a_page_are_the_programs(name):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    parser = make_parser()
    for line in re.findall(r"^    (?:\S*/)?c3jax (.*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        kept, overrides = split_overrides(words, list_fields)
        arguments = parser.parse_args(kept)  # exits where it cannot
        assert not overrides or arguments.takes_overrides
        if words[0] == "train":
            assert find_config(arguments.config).is_file()
    fields = {field.path for field in list_fields()}
    sections = "|".join(sorted({path.partition(".")[0] for path in fields if "." in path}))
    for path in re.findall(rf"`((?:{sections})\.[a-z_.]+)", text):
        assert path.replace(".0.", ".N.") in fields, path
