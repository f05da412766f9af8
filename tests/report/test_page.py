"""A report's page without a browser: what is in it, what cannot get out of its data, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from c3jax.cli import main
from c3jax.report import page as page_lib
from c3jax.report.embed import embed_json
from c3jax.report.page import render_report, save_run_report

from .conftest import HOSTILE, make_evaluation, make_tree


class Parsed(HTMLParser):
    """A page's elements with their attributes, and the raw text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._open = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag in ("script", "style")
        if self._open:
            self.raw.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)
        else:
            self.text += f"{data} "

    @property
    def data(self) -> dict[str, Any]:
        (text,) = (text for _, attributes, text in self.raw if attributes.get("id") == "data")
        return json.loads(text)

    @property
    def code(self) -> list[str]:
        return [text for tag, attributes, text in self.raw if tag == "script" and "type" not in attributes]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def test_json_in_a_page_cannot_end_its_element():
    text = embed_json({"a": "</script><!-- & \u2028\u2029", "b": "é\ud800"})
    assert text == '{"a":"\\u003c/script\\u003e\\u003c!-- \\u0026 \\u2028\\u2029","b":"é\ufffd"}'
    assert json.loads(text) == {"a": "</script><!-- & \u2028\u2029", "b": "é\ufffd"}
    with pytest.raises(ValueError, match="Out of range"):
        embed_json(float("nan"))


def test_a_page_asks_nothing_of_any_network(make_run):
    page = render_report([make_run()])
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("base", "iframe", "object", "embed", "form", "img", "audio", "video", "use")
        assert not {"src", "srcset", "action", "style", "background", "poster"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href") is None or re.match("#|data:,$", attributes["href"] or ""), tag
    styles = "".join(text for tag, _, text in parsed.raw if tag == "style")
    assert "url(" not in styles and "@import" not in styles
    # The one address that stands in the page is in a comment: where uPlot is from.
    assert re.findall(r"\S*://\S*", page) == ["https://github.com/leeoniya/uPlot"]
    assert "Permission is hereby granted" in page


def test_only_the_pages_own_code_may_run(make_run):
    parsed = Parsed(render_report([make_run()]))
    (policy,) = (a["content"] or "" for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    (style,) = (text for tag, _, text in parsed.raw if tag == "style")

    def compute(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [compute(text) for text in parsed.code] and len(parsed.code) == 2
    assert rules["style-src"] == compute(style)
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    assert "unsafe" not in policy and "http" not in policy
    first = [tag for tag, attributes in parsed.elements if "http-equiv" in attributes or tag in ("style", "script")]
    assert first[0] == "meta"  # a policy holds for what follows it


def test_no_script_of_ours_makes_markup_of_a_text():
    words = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|eval\(|Function\("
    )
    for name in ("uplot.js", *page_lib._SCRIPTS):
        assert not re.search(words, page_lib._load_asset(name)), name
        assert not re.search("</script|<!--", page_lib._load_asset(name), re.IGNORECASE), name


def test_what_a_model_wrote_stays_text(make_run):
    plain = Parsed(render_report([make_run("plain")]))
    tree = make_tree(0, HOSTILE[2], question=HOSTILE[0], texts=HOSTILE)
    run = make_run("<b onclick=x>run", trees=[tree], evaluations=[make_evaluation(0, [0, 1], suite=HOSTILE[1])])
    page = render_report([run])
    parsed = Parsed(page)
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in plain.elements}
    assert [tag for tag, _ in parsed.elements].count("script") == 3
    assert parsed.code == plain.code
    (shown,) = parsed.data["transcripts"]["trees"]
    assert [*shown["turns"][0]["text"], *shown["turns"][1]["text"]] == list(HOSTILE)
    assert (shown["problem"], shown["question"]) == (HOSTILE[2], HOSTILE[0])
    assert HOSTILE[1] in parsed.text and "<b onclick=x>run" in parsed.text


def test_bytes_that_are_no_text_are_shown_as_such(make_run):
    run = make_run(trees=[make_tree(0, "p0", texts=("half \ud83d", "b", "1", "2", "3", "4"))])
    file = Path(run, "rollouts", "step-000000.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"text": "b"', b'"text": "\xff\xfe\xc3("'))
    (tree,) = Parsed(render_report([run])).data["transcripts"]["trees"]
    # A half character is three bytes of no UTF-8; of four bytes \xc3( is one of no UTF-8 and a parenthesis.
    assert tree["turns"][0]["text"] == ["half \ufffd\ufffd\ufffd", "\ufffd\ufffd\ufffd("]


def test_a_page_holds_a_tree_in_columns(make_run):
    run = make_run(trees=[make_tree(3, "p0", (1, 0, 0.5, 1), truncated=(1, 4))])
    data = Parsed(render_report([run])).data["transcripts"]
    (tree,) = data["trees"]
    plan, answer = tree["turns"]
    assert plan["advantage"] == [-0.25, 0.25] and plan["value"] == [0.5, 0.75]
    assert answer["return"] == [1, 0, 0.5, 1] and answer["advantage"] == [1, -1, -0.5, 0.5]
    assert (plan["truncated"], answer["truncated"]) == ([False, True], [False, False, True, False])
    assert (tree["step"], tree["line"], tree["fan_out"]) == (3, 0, [2, 2])
    prompts = data["runs"][0]["prompts"]["plan"]
    assert prompts == [
        ["system", [["text", "be {"], ["text", "brief}"]]],
        ["user", [["slot", "question"], ["text", " ?"]]],
    ]


def test_what_others_read_of_a_message_stands_beside_it(make_run):
    recorded = make_tree(3, "p0")
    for node, part in zip(recorded["nodes"], ("a", "", "1", "2", "3", "4"), strict=True):
        node |= {"visible": part} if node["turn"] == "plan" else {}
    (tree,) = Parsed(render_report([make_run(trees=[recorded])])).data["transcripts"]["trees"]
    assert tree["turns"][0]["text"] == ["plan a", "plan b"] and tree["turns"][0]["visible"] == ["a", ""]
    assert "visible" not in tree["turns"][1]


def test_a_plan_of_several_trees_is_shown_branch_by_branch(make_run):
    """One episode, and its copies without the first message and without the last."""
    plan, answer = ({"turn": turn, "role": role} for turn, role in (("plan", "planner"), ("answer", "solver")))
    credit = {"value": 1.0, "baseline": 0.0, "advantage": 1.0}
    nodes = [
        plan | {"branch": 0, "kind": "factual", "index": [0], "text": "go", **credit},
        answer | {"branch": 0, "kind": "factual", "index": [0, 0], "text": "7", "return": 1, **credit},
        answer | {"branch": 1, "kind": "counterfactual", "index": [0, 0], "text": "8", "return": 0},
        answer | {"branch": 2, "kind": "counterfactual", "index": [0, 0], "text": "", "return": 0},
    ]
    kept = [[0, [0]], None]
    branches = [{"given": given} for given in ([], [None], kept)]
    head = {"problem": "p0", "question": "?", "protocol": ["plan", "answer"], "step": 0, "method": "difference"}
    record = head | {"plan": {"form": "removal", "episodes": 1}, "branches": branches, "nodes": nodes}
    trees = Parsed(render_report([make_run(trees=[record])])).data["transcripts"]["trees"]
    assert [(tree["line"], tree["problem"]) for tree in trees] == [
        ("0.0", "p0, factual"),
        ("0.1", "p0, counterfactual after plan"),
        ("0.2", "p0, counterfactual after answer"),
    ]
    assert [[turn["text"] for turn in tree["turns"]] for tree in trees] == [
        [["go"], ["7"]],
        [[""], ["8"]],
        [["go"], [""]],
    ]
    assert [tree["turns"][1]["advantage"] for tree in trees] == [[1.0], [None], [None]]


@pytest.mark.parametrize(
    ("characters", "shown"),
    [
        (10, 500),  # as many as a page has
        (2_000, None),  # as many as fit
    ],
)
def test_a_long_run_is_sampled_and_the_page_says_how(make_run, characters: int, shown: int | None):
    texts = ["<" * characters] * 6  # each character is six in the page
    trees = [make_tree(step, f"p{step}-{row}", texts=texts) for step in range(0, 300, 10) for row in range(40)]
    page = render_report([make_run(trees=trees, rows=[{"return": 0.5, "kl": 0.1}] * 3000)])
    assert len(page.encode()) < 5_000_000
    parsed = Parsed(page)
    kept = parsed.data["transcripts"]["trees"]
    steps = sorted({tree["step"] for tree in kept})
    assert shown is None or len(kept) == shown
    assert steps[0] == 0 and steps[-1] == 290 and len(steps) <= 20
    assert f"Of 1,200 recorded trees this page shows {len(kept)}," in parsed.words
    assert f"from {len(steps)} of 30 recorded steps." in parsed.words
    run = parsed.data["curves"]["runs"][0]
    assert run["width"] == 8 and len(run["figures"]["return"]) == 375  # 3,000 steps in at most 400 points


def test_a_message_that_fits_no_page_is_cut_and_its_length_is_kept(make_run):
    texts = ["a", "b", "1", "2", "3", "x" * 5_000_000]
    page = render_report([make_run(trees=[make_tree(0, "p0", texts=texts)])])
    (tree,) = Parsed(page).data["transcripts"]["trees"]
    text, left_out = tree["turns"][1]["text"][3], tree["turns"][1]["cut"][3]
    assert len(page.encode()) < 5_000_000 and len(text) + left_out == 5_000_000 and len(text) >= 1_000_000


def test_the_overview_by_hand(make_run):
    """Eight problems, none right before and seven after; five steps of 8 calls, 12 messages and 1.75 seconds."""
    words = Parsed(render_report([make_run()])).words
    assert "Held\u2011out accuracy rose from 0.000 to 0.875." in words
    assert "A difference of +0.875, 95 % interval" in words
    assert "5 steps, 40 evaluator calls and 60 messages." in words
    assert "Evaluator calls 40 8 a step Messages 60 12 a step Tokens generated 150 30 a step" in words
    assert "Seconds 8.8 1.8 a step" in words and "FLOPs" not in words
    for fact in ("Credit method c3", "Fan-out 2 × 2", "Turns plan → answer", "Commit 0123456789ab", "1 × cpu (cpu)"):
        assert fact in words
    assert "Intervals of a single run speak of its problems, not of other seeds." in words
    assert "All 2 recorded trees are on this page." in words
    flops = [{"return": 0.5, "flops": 2e9}] * 5
    assert "FLOPs 10,000,000,000" in Parsed(render_report([make_run("flops", rows=flops)])).words


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([1] * 8, [0] * 7 + [1], "Held\u2011out accuracy fell from 1.000 to 0.125."),
        ([0, 1] * 4, [1, 0] * 4, "No measurable change of held\u2011out accuracy, from 0.500 to 0.500."),
    ],
)
def test_the_verdict(make_run, before, after, verdict):
    run = make_run(evaluations=[make_evaluation(0, before), make_evaluation(5, after)])
    assert verdict in Parsed(render_report([run])).words


def test_a_run_that_was_stopped_says_so(make_run):
    words = Parsed(render_report([make_run(rows=[{"return": 0.25}, {"return": 0.75}], evaluations=[])])).words
    assert "Not evaluated after training; the mean return was 0.250 in the first tenth of the steps and 0.750" in words
    assert "2 steps of the 5 planned (not finished)" in words and "No evaluation is recorded." in words


def test_what_a_reader_should_know_is_said(make_run):
    run = make_run(
        rows=[
            {"return": 0.0, "zero_credit_share": 0.9, "truncated_share": 0.2, "bad_updates": step} for step in range(5)
        ],
        evaluations=[make_evaluation(0, [0] * 8), make_evaluation(5, [1] * 8, truncated=0.125)],
        manifest={
            "unsafe_no_sandbox": True,
            "git": {"commit": "0" * 40, "is_dirty": True},
            "data": {"overlap": {"heldout": 3}, "dropped": []},
            "starts": [{"time": "2026-01-02T03:04", "step": 0, "changes": {}}, {"changes": {"inputs": {}}}],
        },
    )
    words = Parsed(render_report([run])).words
    for sentence in (
        "heldout, greedy: 12.5\u202f% of the answers met the token limit, so the accuracy measures the limit, too.",
        "In the last tenth of the steps 90.0\u202f% of the messages had no credit",
        "In the last tenth of the steps 20.0\u202f% of the messages met their token limit.",
        "Updates that were skipped for a loss or gradient that is not finite: 4.",
        "Training problems share something with held-out problems, and were kept.",
        "Programs ran without their sandbox.",
        "What the run reads from outside changed between its starts",
        "The program differed from its commit.",
    ):
        assert " ".join(sentence.split()) in words, sentence


def test_several_runs_side_by_side(make_run):
    runs = [
        make_run("a0", seed=0),
        make_run("a1", seed=1),
        make_run("b0", steps=6, evaluations=[make_evaluation(0, [0] * 8), make_evaluation(5, [0] * 8)]),
    ]
    parsed = Parsed(render_report(runs))
    assert "steps 5 has a higher held\u2011out accuracy than steps 6." in parsed.words  # named by what differs
    assert "5: 2 seeds, 5 steps each, 80 evaluator calls" in parsed.words
    curves = parsed.data["curves"]
    assert curves["groups"] == ["steps 5", "steps 6"] and [run["group"] for run in curves["runs"]] == [0, 0, 1]
    assert [run["name"] for run in parsed.data["transcripts"]["runs"]] == ["a0", "a1", "b0"]
    assert curves["runs"][0]["axes"]["evaluator_calls"] == [8, 16, 24, 32, 40]
    assert curves["runs"][0]["figures"]["return"] == [0, 0.25, 0.5, 0.75, 1]
    accuracy = curves["runs"][0]["evaluations"]["heldout, greedy"]
    assert accuracy["value"] == [0, 0.875] and accuracy["messages"] == [0, 60]


def test_other_credit_is_shown_beside_the_runs_own(make_run, tmp_path, capsys):
    trees = [make_tree(0, "p0"), make_tree(0, "p1")]
    run, scored = make_run(trees=trees), tmp_path / "scored.jsonl"
    other = [tree | {"method": "rloo", "normalise": "group"} for tree in json.loads(json.dumps(trees))]
    for tree in other:
        for node in tree["nodes"]:
            node["advantage"] *= -1
    scored.write_text("".join(json.dumps(tree) + "\n" for tree in other))
    assert main(["report", run, "--out", str(tmp_path / "a.html"), "--scored", str(scored)]) == 0
    data = Parsed((tmp_path / "a.html").read_text(encoding="utf-8")).data["transcripts"]
    assert data["methods"] == ["rloo / group"]
    assert data["trees"][0]["turns"][0]["advantage"] == [-0.5, 0.5]
    assert data["trees"][0]["credits"]["rloo / group"][0]["advantage"] == [0.5, -0.5]
    other[1]["nodes"][0]["text"] = "another"
    scored.write_text("".join(json.dumps(tree) + "\n" for tree in other))
    assert main(["report", run, "--scored", str(scored)]) == 2
    assert capsys.readouterr().err.endswith(f"scored.jsonl:2: expected the tree that {run} recorded, got another\n")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and what is never lost


def refuse(capsys, *words: str) -> str:
    assert main(["report", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("c3jax: ") and err.count("\n") == 1
    return err[7:-1]


def test_bad_input_is_one_sentence_and_exit_code_2(make_run, tmp_path, capsys, monkeypatch):
    run = make_run()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert refuse(capsys, "gone") == "gone: expected a run directory, got nothing"
    assert refuse(capsys, "file") == "file: expected a run directory, got a file"
    assert refuse(capsys, "empty") == "run directory empty: expected a run with a config.yaml, found none"
    assert refuse(capsys, "run", "--out", "folder.html") == "--out folder.html: expected a file, got a folder"
    assert refuse(capsys, "run", "--out", "run/metrics.jsonl").endswith("expected a file whose name ends in .html")
    assert refuse(capsys, "run", "run") == "--out: expected a file for the report of 2 runs, got none"
    assert refuse(capsys, "run", "run", "--out", "a.html") == "run: expected every run once, got it twice"
    assert refuse(capsys, "run", "--out", "file/a.html").startswith("--out file/a.html: cannot be written")
    make_run("no-trees", trees=[])
    assert refuse(capsys, "no-trees") == "no-trees: expected recorded trees in its folder rollouts, found none"
    make_run("no-steps", rows=[])
    assert refuse(capsys, "no-steps") == "no-steps: expected a run that has taken a step, got none in metrics.jsonl"
    Path(run, "rollouts", "step-000000.jsonl").write_text('{"step": 0}\n')
    assert refuse(capsys, "run").endswith("step-000000.jsonl:1: protocol: expected a list, got none")
    Path(run, "manifest.json").write_text("[]")
    assert refuse(capsys, "run") == (
        "manifest run/manifest.json: expected an object with a list of starts, got something else"
    )
    assert not list(tmp_path.rglob("*.partial")) and not Path(run, "report.html").exists()


def test_a_run_that_records_no_trees_has_a_report_without(make_run):
    parsed = Parsed(render_report([make_run(trees=[], record_every=0)]))
    assert parsed.data["transcripts"]["trees"] == []
    assert "No trees were recorded (record_every: 0)." in parsed.words


def test_the_report_goes_to_the_run_and_says_so(make_run, capsys):
    run = make_run()
    assert main(["report", run]) == 0
    assert "".join(capsys.readouterr().out.split()).startswith(f"{run}/report.html:0.1MB".replace(" ", ""))
    assert Parsed(Path(run, "report.html").read_text(encoding="utf-8")).data["transcripts"]["trees"]


@pytest.mark.parametrize("damage", ["metrics.jsonl", "manifest.json", "config.yaml", "eval/step-5.json"])
def test_a_report_that_cannot_be_made_never_ends_a_run(make_run, damage):
    run = Path(make_run())
    assert save_run_report(run, Console(file=io.StringIO())) == run / "report.html"
    before = (run / "report.html").read_bytes()
    (run / damage).write_text("{torn")
    said = io.StringIO()
    assert save_run_report(run, Console(file=said, width=1000)) is None
    assert said.getvalue().startswith("no report.html: ") and said.getvalue().count("\n") == 1
    assert (run / "report.html").read_bytes() == before
