#!/usr/bin/env bash
# Trains and evaluates the paper's runs (configs/paper): a cell, a row of cells, or all, over seeds. What is done is skipped,
# what was stopped is resumed. docs/paper.md says more, paper.py how.
#   launch/paper.sh --dry-run                        print the commands that are left to run
#   launch/paper.sh maths_qwen3_4b_duo_c3            a cell: seeds 0 to 4
#   launch/paper.sh 'maths_qwen3_4b_duo_*' --seeds 0 a row
#   launch/paper.sh --long                           the matrix with messages of up to 2048 tokens
#   launch/paper.sh --tiny                           the whole matrix on the quickstart's policy and task, in minutes
#   launch/paper.sh maths_qwen3_4b_duo_c3 -- --policy.kind adapters
set -euo pipefail
here="$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || printf '%s' "${BASH_SOURCE[0]}")"
# shellcheck source=launch/environment.sh
source "${here%/*}/environment.sh"

# shellcheck disable=SC2119 # no extra of its own
c3jax_environment
cd "$C3JAX_ROOT"
exec "$C3JAX_BIN/python" launch/paper.py "$@"
