"""The smallest run there is, for tests that make whole ones: a policy of one layer, two turns of two tokens."""

from __future__ import annotations

from typing import Any

TREE: dict[str, Any] = {
    **{"seed": 0, "steps": 4, "problems": 2, "workers": 1},
    "task": {"kind": "arithmetic", "moves": 1, "train_problems": 4, "heldout_problems": 3},
    "protocol": {
        "question_tokens": 9,
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question} plan :", "max_tokens": 2},
            {"name": "answer", "role": "solver", "user": "{plan} answer :", "max_tokens": 2},
        ],
    },
    "model": {
        **{"kind": "random", "layers": 1, "width": 8, "heads": 1, "key_value_heads": 1, "mlp_width": 8},
        "context": 20,
    },
    "credit": {"method": "c3", "fan_out": [2, 2], "budget": 4, "normalise": "none"},
    "learner": {"learning_rate": 1e-3},
}
