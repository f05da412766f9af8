"""The claims: their judges on rows made by hand, the planted faults, the page from records, and the command."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from c3jax.analysis.statistics import compute_student_interval
from c3jax.credit.plans import make_replay
from c3jax.types import UserError
from experiments.claims import __main__ as command
from experiments.claims import claim, draws, gradients, learning, page, records

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = {each.number: each for each in claim.load_claims()}
PREDICTIONS = "b7d9773d4c767f288b5e895e0d3701605d68e3f6b10420ed3a44308c4c3443fc"
SCALE = claim.Scale(seed=0, games=4, samples=200, seeds=2, updates=20)


def judge(number: int, rows: list[dict[str, Any]]) -> str:
    """The verdict of a claim on these rows alone; checks whose rows are not among them are left out."""
    rows = claim.correct_rows([rows])[0]
    parts = [part for part in CLAIMS[number].parts if isinstance(part, claim.Check) and has_rows(rows, part)]
    return claim.conclude(claim.judge(CLAIMS[number].model_copy(update={"parts": tuple(parts)}), rows))


def has_rows(rows: list[dict[str, Any]], check: claim.Check) -> bool:
    try:
        return bool(claim.find_rows(rows, check.where))
    except KeyError:
        return False


# --------------------------------------------------------------------------------------------------------------------
# The claims and their language


def test_the_claims_are_as_they_were_written():
    """Nineteen, numbered, each measured; no word of a prediction has changed since it was first measured."""
    assert list(CLAIMS) == list(range(1, 20)) and list(command.MEASURES) == [each.name for each in CLAIMS.values()]
    predictions = [" ".join(part for part in each.parts if isinstance(part, str)) for each in CLAIMS.values()]
    assert hashlib.sha256("\n".join(predictions).encode()).hexdigest() == PREDICTIONS


@pytest.mark.parametrize(
    ("met", "verdict"),
    [
        ((True, True, True), "holds"),
        ((False, True, True), "fails"),
        ((True, False, True), "holds only under (all but b)"),
        ((True, False, False), "holds only under (only a)"),
    ],
)
def test_a_verdict_follows_from_its_checks(met: tuple[bool, ...], verdict: str):
    checks = [claim.Check(check=name, core=name == "a") for name in "abc"]
    judged = [claim.Judged(check, [], {check.check: ok}) for check, ok in zip(checks, met, strict=True)]
    assert claim.conclude(judged) == verdict


@pytest.mark.parametrize(
    ("test", "is_met"),
    [
        ("x < 3", True),
        ("x < 2", False),
        ("x <= 2", True),
        ("x > 1", False),
        ("x >= 1", True),
        ("x within 1 2", True),
        ("x within 1.5 2", False),
        ("x near 1.5 0.5", True),
        ("x near 1 0.5", False),
        ("x holds 1.9", False),  # the first row's interval ends before it
        ("x holds 1.5", True),
        ("x holds truth", True),
        ("x surely-above 0.4", True),
        ("x surely-above 0.5", False),  # the first row's interval begins there
        ("x surely-below 2.6", True),
        ("x surely-below 2.5", False),
        ("y surely-above 0", False),  # an interval above zero, but a test that does not reject
        ("x rises", True),
        ("x falls", False),
        ("x never-rises", False),
        ("z never-rises", True),
        ("z falls", False),
        ("x < 3 and x > 1", False),
        ("x < 3 and x > 0", True),
    ],
)
def test_the_language_of_checks(test: str, is_met: bool):
    same = {"truth": 1.4, "z": 1.0}
    rows = [
        {"x": 1.0, "x_low": 0.5, "x_high": 1.8, "p_holm": 0.01, "y_low": 1.0, "y": 1.5, **same},
        {"x": 2.0, "x_low": 1.2, "x_high": 2.5, "p_holm": 0.05, "y_low": 1.0, "y": 1.5, **same},
    ]
    if test.startswith("y"):
        rows[1]["p_holm"] = 0.06
    assert claim.is_met(test, rows) is is_met


def test_unknown_numbers_meet_nothing():
    rows = [{"x": math.nan, "x_low": math.nan, "x_high": math.nan, "p_holm": math.nan}]
    assert not any(claim.is_met(f"x {test}", rows) for test in ("< 1", "> 1", "near 1 1", "holds 1", "surely-above 0"))


def test_rows_are_found_in_the_order_that_is_asked_for():
    rows = [{"arm": "c3", "n": 1}, {"arm": "rloo", "n": 2}, {"arm": "c3", "n": 3}, {"arm": "grpo", "n": 4}]
    assert [row["n"] for row in claim.find_rows(rows, {"arm": ("rloo", "c3")})] == [2, 1, 3]
    with pytest.raises(KeyError, match="arm magrpo"):
        claim.find_rows(rows, {"arm": "magrpo"})


def test_a_check_is_a_condition_for_each_of_what_its_name_says():
    parts = (claim.Check(check="returns at K = {depth}", test="value > 0"),)
    rows = [{"depth": depth, "value": value, "p_holm": math.nan} for depth, value in ((2, 1.0), (4, -1.0), (6, 1.0))]
    (judged,) = claim.judge(CLAIMS[12].model_copy(update={"parts": parts}), rows)
    assert judged.conditions == {"returns at K = 2": True, "returns at K = 4": False, "returns at K = 6": True}


# --------------------------------------------------------------------------------------------------------------------
# Verdicts on rows made by hand


def make_bias_rows(sound: float, faults: tuple[float, float]) -> list[dict[str, Any]]:
    rows = []
    for kind, low, p in (("leave-one-out", sound, 0.5), ("fault", faults[0], 1e-6), ("fault", faults[1], 1e-6)):
        columns = {"squared_bias": low + 0.1, "squared_bias_low": low, "squared_bias_high": low + 0.2}
        rows.append({"estimator": f"{kind} {len(rows)}", "kind": kind, "role": "first", **columns, "p": p})
    return rows


@pytest.mark.parametrize(
    ("sound", "faults", "verdict"),
    [
        (-0.1, (0.1, 0.1), "holds"),
        (0.01, (0.1, 0.1), "fails"),
        (-0.1, (0.1, -0.01), "holds only under (all but left out (fault 2, first role))"),
    ],
)
def test_the_judge_of_unbiasedness(sound: float, faults: tuple[float, float], verdict: str):
    assert judge(1, make_bias_rows(sound, faults)) == verdict


def test_a_fault_that_is_not_significant_after_correction_is_missed():
    rows = make_bias_rows(-0.1, (0.1, 0.1))
    rows[1]["p"] = 0.03  # times the two tests that are at least as large: 0.06
    assert judge(1, rows) == "holds only under (all but left out (fault 1, first role))"


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.02, 0.98), "holds"),
        ((1.05, 1.0), "fails"),
        ((1.0, 1.05), "holds only under (all but second role (n=2 c=1))"),
    ],
)
def test_the_judge_of_the_variance_law(ratio: tuple[float, float], verdict: str):
    rows = [
        {"plan": "n=2 c=1", "role": role, "ratio": x, "ratio_low": x - 0.1, "ratio_high": x + 0.1}
        for role, x in zip(("first", "second"), ratio, strict=True)
    ]
    assert judge(3, rows) == verdict


@pytest.mark.parametrize(
    ("calls", "messages", "verdict"),
    [(-0.1, 0.0, "holds"), (-0.1, -0.2, "fails"), (0.1, 0.2, "holds only under (all but behind at equal calls)")],
)
def test_the_judge_of_learning_curves(calls: float, messages: float, verdict: str):
    values = {"calls": calls, "messages": messages, "tokens": 0.1}
    row = {"quantity": "difference", "arm": "c3 2x4"}
    rows = [
        {**row, "unit": unit, "value": x, "value_low": x - 0.01, "value_high": x + 0.01, "p": 1e-4}
        for unit, x in values.items()
    ]
    zero = {"value": 0.0, "value_low": -0.001, "value_high": 0.001, "p": 0.9}
    rows.append({**row, "arm": "magrpo 8", "unit": "calls", **zero})
    assert judge(9, rows) == verdict


def test_holm_is_over_the_tests_of_all_claims():
    rows = claim.correct_rows([[{"p": 0.01}, {"x": 1.0}], [{"p": 0.04}, {"p": 0.03}]])
    # Ascending .01, .03, .04 times 3, 2, 1, then made monotone.
    assert [rows[0][0]["p_holm"], rows[1][0]["p_holm"], rows[1][1]["p_holm"]] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(rows[0][1]["p_holm"])


# --------------------------------------------------------------------------------------------------------------------
# Measurements


def test_estimators_are_read_as_tables_print_them():
    assert draws.read_estimator("c3 2x4 group", 2) == ("c3", draws.make_tree((2, 4)), "group")
    assert draws.read_estimator("rloo 8", 3)[1] == draws.make_tree((8, 1, 1))
    assert draws.read_estimator("c3_replay 1+2", 2)[1] == make_replay((1, 2), 2)
    assert draws.read_estimator("at_grpo 1+1", 2)[1] == make_replay((1, 1), 2, continues_best=True)
    assert draws.read_estimator("shapley 3", 2)[1] == draws.make_arms("coalition", 3, 2)


def test_a_crossing_is_found_on_a_straight_line_and_may_be_missing():
    assert gradients.find_crossing([0.0, 0.2, 0.4], [1.0, 2.0, 4.0], 3.0) == pytest.approx(0.3)
    assert math.isnan(gradients.find_crossing([0.0, 0.2], [1.0, 2.0], 3.0))


def test_a_p_value_is_that_of_the_t_test():
    interval = compute_student_interval([1.0, 2.0, 3.0], 0.95)
    # t = mean / (s / sqrt n) = 2 / (1 / sqrt 3) = 3.4641, two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    assert draws.compute_p(interval, 3) == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert draws.compute_p(interval, 3, 0.95, 2.0) == pytest.approx(1.0)


def test_adaptive_counts_by_hand():
    # Alternative 0 succeeds at once: 1 of 1. Alternative 1 at its second try: 1 of 2. Alternative 2 never: 0 of 2.
    return_SNC = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    expected_SN = [[1 - 1 / 4, 1 / 2 - 1 / 3, 0 - 2 / 3]]
    for give in (draws.give_adaptive_credit, jax.jit(draws.give_adaptive_credit)):
        np.testing.assert_allclose(give(return_SNC), expected_SN, atol=1e-6)


def test_planted_faults_are_caught_and_leave_one_out_is_not():
    testbed = draws.make_survey_testbed(8, 0)
    sums = {
        "sound": draws.draw_sums(testbed, "c3 2x4", 400, 1),
        "std": draws.draw_sums(testbed, "c3 2x4 group", 400, 1),
        "own mean": draws.draw_sums(testbed, "no_loo 2x4", 400, 1),
        "adaptive": draws.draw_adaptive_sums(testbed, make_replay((4,) * 4, 2), 400, 1),
    }
    for turn in range(2):
        bias = {name: draws.describe_bias(testbed, each, turn) for name, each in sums.items()}
        assert bias["sound"]["squared_bias_low"] <= 0 <= bias["sound"]["squared_bias_high"]
        assert all(bias[name]["squared_bias_low"] > 0 for name in ("std", "own mean", "adaptive"))
        # The own-including mean shrinks A* by 1/n, whose square is the bias: exactly known.
        share = np.square(1 / (2, 4)[turn])
        exact_GCM, chance_GCM = (np.asarray(x[turn]) for x in (testbed.target.advantage, testbed.target.policy))
        visit_GC = np.asarray(testbed.oracle.visit[turn])
        expected = share * (visit_GC[..., None] * chance_GCM * exact_GCM**2).sum() / testbed.count
        assert bias["own mean"]["squared_bias_low"] <= expected <= bias["own mean"]["squared_bias_high"]


def test_the_mean_of_a_curve_over_part_of_its_cost():
    value_RE = np.array([[0.0, 1.0, 2.0]])  # the line value = cost / 2 up to cost 4
    np.testing.assert_allclose(learning.average_curve(value_RE, 4.0, 2.0), [0.5], atol=1e-6)


# --------------------------------------------------------------------------------------------------------------------
# Records and the page


def save_hand_made(folder: Path) -> list[claim.Claim]:
    """Records of two claims, one shown as a figure and one as a table."""
    row = {"plan": "n=2 c=1", "predicted": 0.5, "measured": 0.51, "measured_low": 0.5, "measured_high": 0.52}
    row |= {"ratio": 1.01, "ratio_low": 0.99, "ratio_high": 1.03, "p": 0.2}
    law = [{**row, "role": role} for role in ("first", "second")]
    gaps = {"difference_before": 1e-7, "difference_after_std": 2e-6, "distance_from_one": 0.0}
    identities = [{"n": 2, "c": 1, "groups": 50, **gaps}, {"n": 3, "c": 4, "groups": 50, **gaps}]
    for number, rows in ((3, law), (4, identities)):
        records.save_record(folder, CLAIMS[number], SCALE, 1.25, rows)
    return [CLAIMS[3], CLAIMS[4]]


def test_the_page_is_the_same_bytes_from_the_same_records(tmp_path: Path):
    claims, pages = save_hand_made(tmp_path), []
    for _ in range(2):
        page.write_page(tmp_path / "page.md", tmp_path, claims)
        pages.append([(tmp_path / "page.md").read_bytes(), (tmp_path / "03-variance-law.svg").read_bytes()])
    assert pages[0] == pages[1]
    text = pages[0][0].decode()
    assert f"({tmp_path.name}/03-variance-law.svg)" in text and "**holds**" in text
    assert "n=2 c=1, first role: 1.010 (0.990 to 1.03)" in text  # what was measured beside what was predicted
    assert all(part in text for part in CLAIMS[4].parts if isinstance(part, str))


def test_the_page_that_is_kept_is_that_of_the_recorded_results():
    text, _ = page.format_page(ROOT / "docs" / "claims", tuple(CLAIMS.values()))
    assert (ROOT / "docs" / "claims.md").read_text() == text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_text("{"), "got something else"),
        (lambda path: path.write_text('{"name": "03-variance-law"}'), "got something else"),
        (lambda path: path.write_text(path.read_text().replace('"03-variance-law"', '"04-other"')), "got that of 04"),
        (lambda path: path.write_text(path.read_text().replace('"ratio"', '"other"')), "expected ratio among its rows"),
        (lambda path: path.write_text(path.read_text().replace('"first"', '"third"')), "a row with role first"),
        (lambda path: path.write_text(path.read_text().replace('"predicted"', '"guessed"')), "column predicted"),
    ],
)
def test_a_missing_or_malformed_record_is_an_error_that_names_it(damage, words: str, tmp_path: Path):
    claims = save_hand_made(tmp_path)
    damage(records.locate_record(tmp_path, claims[0]))
    with pytest.raises(UserError, match=f"03-variance-law.json.*{words}"):
        page.write_page(tmp_path / "page.md", tmp_path, claims)
    assert not (tmp_path / "page.md").exists()


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_two_claims_end_to_end_and_resumed(tmp_path: Path):
    folder, printed = tmp_path / "claims", []
    for _ in range(2):
        out = io.StringIO()
        assert command.run(SCALE, (4, 19), folder, (), Console(file=out, width=100)) == 0
        printed.append(out.getvalue().splitlines())
        kept = [records.locate_record(folder, CLAIMS[number]).read_bytes() for number in (4, 19)]
        records.locate_record(folder, CLAIMS[19]).unlink()
    assert "measured" in printed[0][0] and "measured" in printed[0][1]
    assert "recorded" in printed[1][0] and "measured" in printed[1][1]
    assert json.loads(kept[0])["rows"] and json.loads(kept[1])["rows"]
    text = (tmp_path / "claims.md").read_text()
    assert text.count("\n## ") == 2 and "| holds |" in text
    with pytest.raises(UserError, match="samples is 200 and not 300"):
        command.run(SCALE.model_copy(update={"samples": 300}), (4,), folder, (), Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "20"], "--only: expected a claim from 1 to 19, got 20"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: expected a YAML file"),
        (["--config", "bad.yaml"], "samples: expected greater than or equal to 100, got 5"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words: list[str], complaint: str, tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("seed: 0\ngames: 4\nsamples: 5\nseeds: 2\nupdates: 20\n")
    result = subprocess.run(
        [sys.executable, "-m", "experiments.claims", *words],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"claims: {complaint}") and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
