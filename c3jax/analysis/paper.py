"""The numbers that arXiv 2603.06859 prints, as data: what tables of our own runs are put beside.

All are of the second version (May 2026) unless their source says otherwise; accuracies in %, with messages of up to 512
tokens. The settings are those of configs/paper, by the name that their methods share.
"""

from __future__ import annotations

from typing import NamedTuple

CAP = 512  # tokens of a message
SEEDS = (0, 1, 2, 3, 4)
METHODS = ("untuned", "mappo", "magrpo", "c3", "no_loo", "no_replay")  # in the order of the paper's tables
AVERAGED = {"maths": ("math500", "cmath", "gsm8k"), "code": ("mbpp", "mbppplus")}  # suites of a task's average
# Since version 0.2 of their code the authors compare means of samples of up to 2048 tokens
# (docs/32_evaluation_protocol.md there, at 8af3850).
MERGED = {"aime": ("aime24", "aime25")}  # sets that are one suite, problem by problem
CONTROLS = ("gsm8k", "cmath")  # solved, so that they tell no methods apart: reported, and nothing is tested on them

_DUO, _TRIO, _CODE = "maths_qwen3_4b_duo", "maths_qwen3_4b_trio", "code_qwen2.5_coder_3b_duo"


class Published(NamedTuple):
    """One number."""

    setting: str
    method: str
    suite: str  # or "average"; "" for what a run costs
    figure: str  # greedy, pass@10: %; tokens: millions generated in training; hours
    value: float
    source: str


def _list_greedy(method: str, values: tuple[float, float, float]) -> list[Published]:
    return [
        Published(_DUO, method, suite, "greedy", value, "main results")
        for suite, value in zip(("math500", "cmath", "gsm8k"), values, strict=True)
    ]


PUBLISHED = (
    *_list_greedy("untuned", (47.5, 92.8, 91.1)),
    *_list_greedy("mappo", (69.3, 95.3, 92.9)),
    *_list_greedy("magrpo", (74.5, 96.1, 93.4)),
    *_list_greedy("c3", (82.8, 96.3, 93.6)),
    Published(_DUO, "c3", "math500", "pass@10", 91.4, "main results"),
    Published(_DUO, "no_replay", "math500", "greedy", 71.0, "ablation: without fixed context"),
    Published(_DUO, "no_loo", "math500", "greedy", 79.0, "ablation: without leave-one-out"),
    # It stands beside the results of Qwen3-4B; of the paper's models only this one is trained on programs.
    Published(_CODE, "untuned", "mbppplus", "greedy", 8.7, "main results"),
    Published(_CODE, "c3", "mbppplus", "greedy", 7.1, "main results"),
    Published(_TRIO, "c3", "average", "greedy", 89.3, "three roles"),
    Published(_TRIO, "mappo", "average", "greedy", 88.3, "three roles"),
    Published(_TRIO, "magrpo", "average", "greedy", 78.2, "three roles"),
    Published(_DUO, "c3", "", "tokens", 418.0, "efficiency"),
    Published(_DUO, "mappo", "", "tokens", 616.0, "efficiency"),
    Published(_DUO, "magrpo", "", "tokens", 703.0, "efficiency"),
    Published(_DUO, "c3", "", "hours", 76.6, "efficiency: a node of 8 A800 with 80 GB"),
    Published(_DUO, "mappo", "", "hours", 112.0, "efficiency: a node of 8 A800 with 80 GB"),
    Published(_DUO, "magrpo", "", "hours", 87.4, "efficiency: a node of 8 A800 with 80 GB"),
)


def find_published(setting: str, method: str, suite: str, figure: str) -> float | None:
    """A number of the paper's; None where it prints none.

    Args:
      setting: as in `maths_qwen3_4b_duo`.
      method: one of METHODS.
      suite: of the problems, `average`, or nothing for what a run costs.
      figure: greedy, pass@10, tokens or hours.
    """
    wanted = (setting, method, suite, figure)
    return next((row.value for row in PUBLISHED if row[:4] == wanted), None)
