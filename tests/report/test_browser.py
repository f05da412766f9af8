"""A report in a browser, as a person uses it: Chromium with the page opened from disk. Skipped where there is none."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from c3jax.report.page import render_report, save_run_report

from .conftest import HOSTILE, make_tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REASON = (
    "no Chromium is installed (apt-get install chromium)"
    if CHROMIUM is None
    else "the package playwright, of the extra dev, is not installed"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason=REASON)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def heard() -> list[str]:
    """What a page logs, and what it asks for but itself."""
    return []


@pytest.fixture
def read(browser, make_run, heard) -> Iterator[Any]:
    """A function that opens the report of a run with these trees; the page asks for itself alone, and logs nothing."""
    contexts = []

    def open_report(trees, hash_: str = "", width: int = 1400, scheme: str = "light", **changes):
        run = make_run(f"run-{len(contexts)}", trees=trees, **changes)
        file = save_run_report(Path(run), Console())
        assert file is not None
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: heard.append(request.url) if request.url.partition("#")[0] != file.as_uri() else None,
        )
        page.goto(file.as_uri() + hash_)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert heard == []


TREES = [
    make_tree(0, "p0", (1, 0, 1, 1), question="1 up 2", truncated=(3,)),
    make_tree(0, "p1", (0, 0, 0, 0), question="3 down 1", texts=("plan c", "plan d", "5", "6", "7", "8")),
    make_tree(10, "p2", (1, 1, 0, 0), question="4 up 4"),
]


def chosen(page) -> str:
    return page.locator('[role="treeitem"][aria-selected="true"]').get_attribute("data-path")


def wait_chosen(page, path: str) -> None:
    """A link is followed after the press that follows it."""
    page.locator(f'[role="treeitem"][aria-selected="true"][data-path="{path}"]').wait_for()


def questions(page) -> list[str]:
    return page.locator("#tree-list .item-question").all_text_contents()


def test_a_person_finds_a_message(read):
    page = read(TREES)
    assert page.locator("h1").text_content().startswith("Held")
    assert page.locator(".chart canvas").count() == 2
    page.get_by_role("link", name="Transcripts").click()
    assert questions(page) == ["1 up 2", "3 down 1", "4 up 4"]
    # The tree opens below the plan of the largest advantage, of two alike the first: (1 + 0) / 2 - 1.
    assert chosen(page) == "0" and page.locator('[role="treeitem"]').count() == 4
    first = page.locator("#message-0")
    assert first.locator(".advantage").text_content() == "advantage \u22120.500"
    assert "tone-down" in (first.get_attribute("class") or "")
    page.locator("#message-1").click()
    assert chosen(page) == "1" and page.locator("#message-1").get_attribute("aria-expanded") == "true"
    assert page.locator("#message-1-1 .badge").text_content() == "\u2713 correct"
    assert page.locator("#message-0-0").count() == 0  # the other one is closed
    page.locator(".context summary").click()
    assert page.locator(".context .prompt .message").text_content() == "1 up 2 : plan b ="
    assert page.evaluate("location.hash") == "#transcripts/0/0/0/1"


def test_filters_and_search(read):
    page = read(TREES, "#transcripts")
    counts = {
        name: page.locator(f"#filter-{name} .count").text_content() for name in ("all", "zero", "truncated", "lost")
    }
    # Right plan, wrong answer: of p0 plan 1 is worth 1 and has no wrong answer; of p2 plan 0 is worth 1 likewise.
    assert counts == {"all": "3", "zero": "1", "truncated": "1", "lost": "0"}
    assert page.locator("#filter-disagree").count() == 0
    page.locator("#filter-truncated").click()
    assert questions(page) == ["1 up 2"]
    page.locator("#tree-list a").click()
    wait_chosen(page, "0.1")
    assert page.locator("#message-0-1 .badge.warn").text_content() == "truncated"
    page.locator("#filter-all").click()
    page.keyboard.press("/")
    page.keyboard.type("PLAN D")
    page.wait_for_selector("#tree-list:not(:has(li + li))")
    page.locator("#tree-list a").click()
    wait_chosen(page, "1")
    assert page.locator("#message-1 mark").text_content() == "plan d"
    page.locator("#search").press("Escape")
    assert len(questions(page)) == 3
    page.locator("#choose-step").select_option("10")
    assert questions(page) == ["4 up 4"]


OBSERVED_TURNS = [
    {"name": "call", "role": "planner", "user": "{question} :", "max_tokens": 4},
    {"name": "result", "environment": {"kind": "calculator"}, "max_tokens": 2},
    {
        "name": "answer",
        "role": "solver",
        "user": "{question} {result} =",
        "max_tokens": 4,
        "unless_done": True,
        "trained": False,
    },
]


def make_observed_tree() -> dict[str, Any]:
    """Two calls of a calculator: it ends the episode of the first, and fails at the second, whose answer is right."""
    credit = {"tokens": 1, "logp": -0.5, "truncated": False, "value": 0.5, "baseline": 0.5, "advantage": 0.0}
    answered = credit | {"turn": "result", "role": "environment", "logp": 0.0}
    leaf = {"turn": "answer", "role": "solver", "answer": None}
    nodes = [
        credit | {"turn": "call", "role": "planner", "index": [0], "text": "1 + 2", "advantage": -1.0},
        credit | {"turn": "call", "role": "planner", "index": [1], "text": "1 +", "advantage": 1.0},
        answered | {"index": [0, 0], "text": "3", "reward": 0.25, "done": True, "failed": False, "advantage": 9.0},
        answered | {"index": [1, 0], "text": HOSTILE[0], "reward": 0.0, "done": False, "failed": True},
        credit | leaf | {"index": [0, 0, 0], "text": "", "tokens": 0, "return": 0.25, "verdict": "partial"},
        credit | leaf | {"index": [1, 0, 0], "text": "3", "return": 1.0, "verdict": "correct"},
    ]
    head = {"problem": "p0", "question": "1 up 2", "protocol": ["call", "result", "answer"], "step": 0, "method": "c3"}
    return head | {"trained": [True, False, False], "fan_out": [2, 1, 1], "nodes": nodes}


def test_what_an_environment_answered_is_known_as_such(read):
    """Who answered, with what and what that paid; it has no credit, which the tree's colours are not measured by."""
    protocol = {"turns": OBSERVED_TURNS, "question_tokens": 32}
    credit = {"method": "c3", "fan_out": [2, 1, 1], "budget": 2, "normalise": "none"}
    page = read([make_observed_tree()], "#transcripts/0/0/0/0.0.0", protocol=protocol, credit=credit)
    result = page.locator("#message-0-0")
    assert result.locator(".badge").all_text_contents() == ["answered by calculator", "episode ended"]
    assert result.locator("> .message-box > .message").text_content() == "3"
    assert result.locator("dl.figures").inner_text().split() == ["value", "0.500", "tokens", "1", "reward", "+0.250"]
    assert result.locator(".advantage").count() == 0 and result.locator(".uncredited").text_content() == "no credit"
    assert "observed" in (result.get_attribute("class") or "") and "tone" not in (result.get_attribute("class") or "")
    assert page.get_by_role("treeitem", name="result 1.1 no credit").count() == 1
    assert page.locator("#message-0").locator("..").locator("p.context").text_content().startswith("Heard by the env")
    assert page.locator("#message-0-0-0 .message").text_content() == "(the episode had ended)"
    assert "tone-down-3" in (page.locator("#message-0").get_attribute("class") or "")  # -1 is the largest that counts
    page.locator("#message-1").click()
    page.locator("#message-1-0").click()
    assert page.locator("#message-1-0 .badge").all_text_contents() == ["answered by calculator", "failed"]
    assert page.locator("#message-1-0 > .message-box > .message").text_content() == HOSTILE[0]
    assert page.locator("#message-1-0-0 .badge").all_text_contents() == ["not trained", "\u2713 correct"]
    assert page.evaluate(CONTRAST) == []


def test_a_right_plan_with_a_wrong_answer_is_found(read):
    tree = make_tree(0, "p0", (0, 0, 1, 0))
    tree["nodes"][1]["value"] = 0.75  # of more continuations than are recorded
    page = read([*TREES, tree | {"problem": "lost"}], "#transcripts")
    page.locator("#filter-lost").click()
    assert page.locator("#tree-list .item-where").all_text_contents() == ["step 0 \u00b7 lost"]
    page.locator("#tree-list a").click()
    wait_chosen(page, "1.1")


def test_keys(read):
    page = read(TREES, "#transcripts/0/0/0")
    for key, path in (
        *(("ArrowRight", "0.0"), ("ArrowDown", "0.1"), ("ArrowDown", "1"), ("ArrowRight", "1"), ("ArrowRight", "1.0")),
        *(("ArrowLeft", "1"), ("ArrowLeft", "1"), ("ArrowUp", "0"), ("End", "1"), ("Home", "0")),
    ):
        page.keyboard.press(key)
        assert chosen(page) == path, key
        assert page.evaluate("document.activeElement.dataset.path") == path
    for key, question in (("j", "3 down 1"), ("j", "4 up 4"), ("j", "4 up 4"), ("k", "3 down 1")):
        page.keyboard.press(key)
        page.locator("#tree-question", has_text=question).wait_for()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_a_link_leads_to_a_message_and_one_to_nothing_says_so(read):
    page = read(TREES, "#transcripts/0/10/0/1.0")
    assert chosen(page) == "1.0" and page.locator("#tree-question").text_content() == "4 up 4"
    page.evaluate("location.hash = 'transcripts/0/10/7/1.0'")
    page.wait_for_selector("#not-here:not([hidden])")
    assert "no message transcripts/0/10/7/1.0" in (page.locator("#not-here").text_content() or "")
    page.evaluate("location.hash = 'transcripts/0/0/1/%3Cb%3E'")
    assert page.locator("#not-here b").count() == 0


def test_the_theme_follows_the_system_until_it_is_chosen(read):
    page = read(TREES, scheme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(color) == "rgb(19, 21, 24)"
    page.get_by_role("button", name="Use the light theme").click()
    assert page.evaluate(color) == "rgb(251, 251, 250)"
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate(color) == "rgb(251, 251, 250)"
    page.get_by_role("button", name="Use the dark theme").click()
    assert page.evaluate(color) == "rgb(19, 21, 24)"


def test_hostile_messages_stay_text(read):
    page = read([make_tree(0, HOSTILE[0], question=HOSTILE[1], texts=HOSTILE)], "#transcripts/0/0/0/1")
    assert page.title() == "run-0 \u00b7 c3jax report"
    assert page.locator("main script, main img, main iframe, main [onerror]").count() == 0
    messages = [page.locator(f"#message-{row} > .message-box > .message").text_content() for row in ("0", "1", "1-0")]
    assert messages == [HOSTILE[0], HOSTILE[1], HOSTILE[4].replace("\u2028", "U+2028").replace("\u2029", "U+2029")]
    page.locator("#message-0").click()
    assert page.locator("#message-0-0 .message").text_content() == HOSTILE[2]
    shown = page.locator("#message-0-1 > .message-box > .message")
    assert shown.text_content() == "U+202EgnihtonU+202C U+2067abc U+200BzeroU+0007bell \ufffd"
    assert shown.evaluate("element => getComputedStyle(element).unicodeBidi") == "isolate"


ATTACKS = (
    "document.body.innerHTML = '<p>taken'",
    "document.body.setAttribute('onclick', 'document.title = 1')",
    "const e = document.createElement('script'); e.append('document.title = 1'); document.body.append(e)",
    "setTimeout('document.title = 1')",
    "new Image().src = 'https://c3jax.invalid/'",
    "fetch('https://c3jax.invalid/').catch(() => null)",
)


def test_the_policy_refuses_code_and_markup_that_are_not_the_pages_own(read, heard):
    page = read(TREES)
    for attack in ATTACKS:
        page.evaluate(f"() => {{ try {{ {attack} }} catch {{ /* refused at once */ }} }}")
        page.wait_for_timeout(30)
        # The browser says what it refused; what was to be fetched is told apart, and never sent.
        said = [line for line in heard if line != "https://c3jax.invalid/"]
        assert said and all("Content Security Policy" in line or "requires 'Trusted" in line for line in said), attack
        heard.clear()
    page.locator("h1").click()
    assert page.title() == "run-0 \u00b7 c3jax report" and page.locator("body > p").count() == 0


def test_a_megabyte_is_cut_in_view_and_can_be_expanded(read):
    page = read([make_tree(0, "p0", texts=HOSTILE)], "#transcripts/0/0/0/1.1")
    box = page.locator("#message-1-1 > .message-box")
    lengths = [len(box.locator(".message").text_content())]
    while box.locator("button.more").count():
        box.locator("button.more").click()
        lengths.append(len(box.locator(".message").text_content()))
    assert lengths == [1500, 15000, 150000, 1 << 20]


def test_a_phone_shows_the_list_or_the_tree(read):
    page = read(TREES, "#transcripts", width=390)
    for name in ("overview", "curves", "transcripts"):
        page.evaluate(f"location.hash = '{name}'")
        page.wait_for_selector(f"body[data-view={name}]")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, name
    assert page.locator("#tree-list").is_visible() and not page.locator("#tree-shown").is_visible()
    page.locator("#tree-list a").first.click()
    page.wait_for_selector("#tree-shown", state="visible")
    assert not page.locator("#tree-list").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("link", name="All trees").click()
    page.wait_for_selector("#tree-list", state="visible")


def test_the_axis_and_the_table_of_curves(read):
    page = read(TREES, "#curves")
    label = page.locator('#main-charts [data-figure="return"] .canvas')
    assert (
        label.get_attribute("aria-label") == "Return by step. run-0: from 0.000 to 1.000, lowest 0.000, highest 1.000"
    )
    page.locator("#choose-axis").select_option("evaluator_calls")
    assert (label.get_attribute("aria-label") or "").startswith("Return by evaluator calls.")
    page.locator("#values summary").click()
    page.wait_for_selector("#values-table tbody tr")
    rows = [row.split("\t") for row in page.locator("#values-table").inner_text().split("\n")]
    assert rows[0][:3] == ["Run", "Evaluator calls", "Return"]
    assert [row[:3] for row in rows[1:]] == [["run-0", str(8 * (n + 1)), f"{n / 4:.3f}"] for n in range(5)]


def open_page(browser, page: str, folder: Path) -> Any:
    (folder / "page.html").write_text(page, encoding="utf-8")
    opened = browser.new_page()
    opened.goto((folder / "page.html").as_uri() + "#curves")
    opened.wait_for_selector("html[data-ready]", state="attached")
    return opened


def test_several_seeds_are_their_mean_where_all_have_been(browser, make_run, tmp_path):
    """One seed's return rises from 0 to 1, the other's is a half; the second writes twice as many tokens a step."""
    half = [{"return": 0.5, "generated_tokens": 60}] * 5
    page = open_page(browser, render_report([make_run("a"), make_run("b", seed=1, rows=half)]), tmp_path)
    label = page.locator('#main-charts [data-figure="return"] .canvas')
    assert label.get_attribute("aria-label") == "Return by step. c3: from 0.250 to 0.750, lowest 0.250, highest 0.750"
    # Tokens 30 to 150 and 60 to 300: both have been at 60 to 150, where the first returns 0.25 to 1.
    page.locator("#choose-axis").select_option("generated_tokens")
    expected = "Return by tokens generated. c3: from 0.375 to 0.750, lowest 0.375, highest 0.750"
    assert label.get_attribute("aria-label") == expected
    page.locator("#choose-axis").select_option("step")
    page.locator("#choose-smoothing").select_option("5")
    # Means over what came before: of 0, 1/4, .. 1 the last is 1/2.
    assert label.get_attribute("aria-label") == "Return by step. c3: from 0.250 to 0.500, lowest 0.250, highest 0.500"
    page.close()


def test_methods_that_disagree_are_found(browser, make_run, tmp_path):
    other = json.loads(json.dumps(TREES))
    other[2]["nodes"][0]["advantage"] *= -1
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(tree | {"method": "other"}) + "\n" for tree in other))
    page = open_page(browser, render_report([make_run(trees=TREES)], [str(tmp_path / "other.jsonl")]), tmp_path)
    page.get_by_role("link", name="Transcripts").click()
    page.locator("#filter-disagree").click()
    assert questions(page) == ["4 up 4"]
    page.locator("#tree-list a").click()
    page.locator("#tree-question", has_text="4 up 4").wait_for()
    assert page.locator("#message-0 .credits dd").all_text_contents() == ["+1.000", "\u22121.000"]
    page.locator("#choose-method").select_option("other")
    assert page.locator("#message-0 .advantage").text_content() == "advantage \u22121.000"
    page.close()


CONTRAST = """() => {
  const parse = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number);
    const [r, g, b] = text.startsWith("color(srgb") ? n.map((x) => x * 255) : n;
    return [r, g, b, n.length > 3 ? n[3] : 1];
  };
  const light = ([r, g, b]) => [r, g, b].map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const back = parse(getComputedStyle(e).backgroundColor);
      if (back[3] > 0.9) return back;
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!isText || !element.checkVisibility() || element.matches("script, style, option")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${element.className || element.tagName}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(read, scheme):
    page = read(TREES, scheme=scheme)
    for hash_ in ("overview", "curves", "transcripts/0/0/0/0.1", "transcripts/0/10/0/1"):
        page.evaluate(f"location.hash = '{hash_}'")
        page.wait_for_selector(f"body[data-view={hash_.partition('/')[0]}]")
        assert page.evaluate(CONTRAST) == [], hash_
    page.keyboard.press("?")
    assert page.evaluate(CONTRAST) == []
    nameless = """[...document.querySelectorAll("button, select, input, a, [role=treeitem], [role=img], [role=region]")]
      .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.closest("label")?.textContent.trim()))
      .map((e) => e.outerHTML)"""
    assert [found for found in page.evaluate(nameless) if 'role="img"' not in found] == []
    tree = page.locator("#tree").aria_snapshot()
    assert 'treeitem "plan 1 advantage +1.000" [level=1]' in tree and 'treeitem "plan 2 advantage \u22121.000"' in tree
