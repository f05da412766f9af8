"""The claims: their judges on rows made by hand, the planted faults, and the page from records."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from c3jax.analysis.statistics import compute_student_interval
from c3jax.config.run import ConfigError
from c3jax.credit.plans import make_replay, make_tree
from c3jax.lab import config as study_config
from c3jax.lab.claims import CLAIMS, direction, estimators, study
from c3jax.lab.claims.claim import Check, Claim, Scale, compute_p, conclude, find_row
from c3jax.lab.claims.faults import give_adaptive_credit, sum_adaptive
from c3jax.lab.claims.page import judge_claims, write_page
from c3jax.lab.claims.recorded import Record, correct_rows, load_record, locate_record, save_record
from c3jax.lab.claims.stage import list_bias, make_survey_stage, sum_estimator
from c3jax.lab.claims.training import average_curve
from c3jax.lab.config import ClaimsStudy
from c3jax.types import UserError

SCALE = Scale(seed=0, games=4, samples=200, seeds=2, updates=20)
CONFIG = {"kind": "claims", "seed": 0, "games": 4, "samples": 200, "seeds": 2, "updates": 20, "only": [4, 19]}


def judge(number: int, rows: list[dict]) -> object:
    claim = CLAIMS[number - 1]
    return claim.judge(correct_rows([rows])[0])


def test_every_claim_has_a_statement_a_prediction_and_a_number():
    assert [claim.number for claim in CLAIMS] == list(range(1, study_config.CLAIMS + 1))
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.statement.endswith(".") and any(letter.isdigit() for letter in claim.prediction)


@pytest.mark.parametrize(
    ("met", "verdict", "condition"),
    [
        ((True, True, True), "holds", ""),
        ((False, True, True), "fails", ""),
        ((True, False, True), "holds only under", "all but b"),
        ((True, False, False), "holds only under", "only a"),
    ],
)
def test_a_verdict_follows_from_its_checks(met: tuple[bool, ...], verdict: str, condition: str):
    checks = [Check(name, ok, name == "a") for name, ok in zip("abc", met, strict=True)]
    finding = conclude(checks, "", "")
    assert (finding.verdict, finding.condition) == (verdict, condition)


def make_bias_rows(sound: float, faults: tuple[float, float]) -> list[dict]:
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
        (-0.1, (0.1, -0.01), "holds only under"),
    ],
)
def test_the_judge_of_unbiasedness(sound: float, faults: tuple[float, float], verdict: str):
    assert judge(1, make_bias_rows(sound, faults)).verdict == verdict


def test_a_fault_that_is_not_significant_after_correction_is_missed():
    rows = make_bias_rows(-0.1, (0.1, 0.1))
    rows[1]["p"] = 0.03  # times the two tests that are at least as large: 0.06
    assert judge(1, rows).verdict == "holds only under"


@pytest.mark.parametrize(
    ("ratio", "verdict"), [((1.02, 0.98), "holds"), ((1.05, 1.0), "fails"), ((1.0, 1.05), "holds only under")]
)
def test_the_judge_of_the_variance_law(ratio: tuple[float, float], verdict: str):
    rows = [
        {"plan": "n=2 c=1", "role": role, "ratio": x, "ratio_low": x - 0.1, "ratio_high": x + 0.1}
        for role, x in zip(("first", "second"), ratio, strict=True)
    ]
    assert judge(3, rows).verdict == verdict


@pytest.mark.parametrize(
    ("calls", "messages", "verdict"), [(-0.1, 0.0, "holds"), (-0.1, -0.2, "fails"), (0.1, 0.2, "holds only under")]
)
def test_the_judge_of_learning_curves(calls: float, messages: float, verdict: str):
    values = {"calls": calls, "messages": messages, "tokens": 0.1}
    rows = [
        {
            "quantity": "difference",
            "arm": "c3 2x4",
            "unit": unit,
            "value": x,
            "value_low": x,
            "value_high": x,
            "p": 1e-4,
        }
        for unit, x in values.items()
    ]
    zero = {"value": 0.0, "value_low": -0.001, "value_high": 0.001, "p": 0.9}
    rows.append({"quantity": "difference", "arm": "magrpo 8", "unit": "calls", **zero})
    assert judge(9, rows).verdict == verdict


def test_a_crossing_is_found_on_a_straight_line_and_may_be_missing():
    assert direction.find_crossing([0.0, 0.2, 0.4], [1.0, 2.0, 4.0], 3.0) == pytest.approx(0.3)
    assert math.isnan(direction.find_crossing([0.0, 0.2], [1.0, 2.0], 3.0))


def test_a_p_value_is_that_of_the_t_test():
    interval = compute_student_interval([1.0, 2.0, 3.0], 0.95)
    # t = mean / (s / sqrt n) = 2 / (1 / sqrt 3) = 3.4641, two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    assert compute_p(interval, 3, 0.95) == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert compute_p(interval, 3, 0.95, 2.0) == pytest.approx(1.0)


def test_holm_is_over_the_tests_of_all_claims():
    rows = correct_rows([[{"p": 0.01}, {"x": 1.0}], [{"p": 0.04}, {"p": 0.03}]])
    # Ascending .01, .03, .04 times 3, 2, 1, then made monotone.
    assert [rows[0][0]["p_holm"], rows[1][0]["p_holm"], rows[1][1]["p_holm"]] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(rows[0][1]["p_holm"])


def test_adaptive_counts_by_hand():
    # Alternative 0 succeeds at once: 1 of 1. Alternative 1 at its second try: 1 of 2. Alternative 2 never: 0 of 2.
    return_SNC = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    expected_SN = [[1 - 1 / 4, 1 / 2 - 1 / 3, 0 - 2 / 3]]
    for credit in (give_adaptive_credit, jax.jit(give_adaptive_credit)):
        np.testing.assert_allclose(credit(return_SNC), expected_SN, atol=1e-6)


def test_planted_faults_are_caught_and_leave_one_out_is_not():
    stage = make_survey_stage(8, 0)
    sums = {
        "sound": sum_estimator(stage, "c3", make_tree((2, 4)), 400, 1),
        "std": sum_estimator(stage, "c3", make_tree((2, 4)), 400, 1, "group"),
        "own mean": sum_estimator(stage, "no_loo", make_tree((2, 4)), 400, 1),
        "adaptive": sum_adaptive(stage, make_replay((4,) * 4, 2), 400, 1),
    }
    for turn in range(2):
        bias = {name: list_bias(stage, each, turn) for name, each in sums.items()}
        assert bias["sound"]["squared_bias_low"] <= 0 <= bias["sound"]["squared_bias_high"]
        assert all(bias[name]["squared_bias_low"] > 0 for name in ("std", "own mean", "adaptive"))
        # The own-including mean shrinks A* by 1/n, whose square is the bias: exactly known.
        share = np.square(1 / (2, 4)[turn])
        exact_GCM, chance_GCM = (np.asarray(x[turn]) for x in (stage.target.advantage, stage.target.policy))
        visit_GC = np.asarray(stage.oracle.visit[turn])
        expected = share * (visit_GC[..., None] * chance_GCM * exact_GCM**2).sum() / stage.count
        assert bias["own mean"]["squared_bias_low"] <= expected <= bias["own mean"]["squared_bias_high"]


def test_the_mean_of_a_curve_over_part_of_its_cost():
    value_RE = np.array([[0.0, 1.0, 2.0]])  # the line value = cost / 2 up to cost 4
    np.testing.assert_allclose(average_curve(value_RE, 4.0, 2.0), [0.5], atol=1e-6)


def save_hand_made(folder: Path) -> list[Claim]:
    """Records of two claims, one shown as a table and one as a figure."""
    claims = [CLAIMS[3], CLAIMS[2]]
    identities = estimators.measure_identities(SCALE._replace(samples=50))
    law = [
        {
            "plan": "n=2 c=1",
            "role": role,
            "predicted": 0.5,
            "measured": 0.51,
            "measured_low": 0.5,
            "measured_high": 0.52,
            "ratio": 1.01,
            "ratio_low": 0.99,
            "ratio_high": 1.03,
            "p": 0.2,
        }
        for role in ("first", "second")
    ]
    for claim, rows in zip(claims, (identities, law), strict=True):
        save_record(folder, claim, Record(SCALE, 1.25, tuple(rows)))
    return claims


def test_the_page_is_the_same_bytes_from_the_same_records(tmp_path: Path):
    claims = save_hand_made(tmp_path / "run")
    pages = []
    for place in ("one", "two"):
        path = tmp_path / place / "page.md"
        write_page(path, tmp_path / "run", claims)
        pages.append([path.read_bytes(), (path.parent / "page" / "03-variance-law.svg").read_bytes()])
    assert pages[0] == pages[1]
    text = pages[0][0].decode()
    assert "page/03-variance-law.svg" in text and "**holds**" in text and CLAIMS[2].prediction in text
    # What lies beside the page is all that it takes to make it again.
    again = tmp_path / "again.md"
    write_page(again, tmp_path / "one" / "page", claims)
    assert again.read_text() == text.replace("(page/", "(again/")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_text("{"), "as JSON"),
        (lambda path: path.write_text('{"claim": 3}'), "other JSON"),
        (lambda path: path.write_text(path.read_text().replace('"ratio"', '"other"')), "ratio"),
    ],
)
def test_a_missing_or_malformed_record_is_an_error_that_names_it(damage, words: str, tmp_path: Path):
    claims = save_hand_made(tmp_path)
    damage(locate_record(tmp_path, claims[1]))
    with pytest.raises(UserError, match=f"03-variance-law.json.*{words}"):
        write_page(tmp_path / "page.md", tmp_path, claims)
    assert not (tmp_path / "page.md").exists()


def test_a_figure_needs_its_columns(tmp_path: Path):
    claims = save_hand_made(tmp_path)
    path = locate_record(tmp_path, claims[1])
    path.write_text(path.read_text().replace('"predicted"', '"guessed"'))
    with pytest.raises(UserError, match="03-variance-law.json.*predicted"):
        write_page(tmp_path / "page.md", tmp_path, claims)


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="arm"):
        find_row([{"arm": "c3"}], arm="rloo")


def test_two_claims_end_to_end_with_resume(tmp_path: Path):
    config = study_config.parse_study(CONFIG)
    assert isinstance(config, ClaimsStudy)
    first, again = io.StringIO(), io.StringIO()
    assert study.run(config, tmp_path, Console(file=first, width=100)) == 0
    page = (tmp_path / "claims.md").read_bytes()
    kept = locate_record(tmp_path, CLAIMS[3]).read_bytes()
    locate_record(tmp_path, CLAIMS[18]).unlink()
    assert study.run(config, tmp_path, Console(file=again, width=100)) == 0
    assert "measured" in first.getvalue().splitlines()[0] and "recorded" in again.getvalue().splitlines()[0]
    assert "measured" in again.getvalue().splitlines()[1]
    assert locate_record(tmp_path, CLAIMS[3]).read_bytes() == kept
    seconds = [load_record(tmp_path, CLAIMS[number]).seconds for number in (3, 18)]
    assert all(value >= 0 for value in seconds)
    rows = [json.loads(locate_record(tmp_path, CLAIMS[number]).read_text())["rows"] for number in (3, 18)]
    assert all(rows)
    findings = [finding for _, _, _, finding in judge_claims(tmp_path, [CLAIMS[3], CLAIMS[18]])]
    assert findings[0].verdict == "holds"
    assert page.decode().count("## ") == 2


def test_a_claim_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="only.1: expected a claim from 1 to 19, got 20"):
        study_config.parse_study({**CONFIG, "only": [1, 20]})
