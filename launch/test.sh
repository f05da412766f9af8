#!/usr/bin/env bash
# Installs c3jax with what its tests need, if need be, and runs all of them. Arguments go to pytest, e.g.
#   launch/test.sh tests/credit -k loo
#   launch/test.sh --with-torch      the parity tests against PyTorch too (on Linux PyTorch brings gigabytes of CUDA)
set -euo pipefail
here="$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || printf '%s' "${BASH_SOURCE[0]}")"
# shellcheck source=launch/environment.sh
source "${here%/*}/environment.sh"

torch=""
if [[ "${1:-}" == --with-torch ]]; then
  torch=torch
  shift
fi
c3jax_environment dev smollm2 $torch
cd "$C3JAX_ROOT"
# The tolerances are those of float32 on a CPU, and two workers cannot share an accelerator's memory.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Work stealing keeps the tests of a file, and so what they compiled, mostly in one worker.
exec "$C3JAX_BIN/python" -m pytest -n 2 --dist worksteal "$@"
