#!/usr/bin/env bash
# Installs c3jax beside the source if need be and trains the quick-start run. Arguments go to `c3jax train`, e.g.
#   launch/quickstart.sh --run-dir runs/first
# Paths are relative to the source's root. environment.sh says which variables are read.
set -euo pipefail
here="$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || printf '%s' "${BASH_SOURCE[0]}")"
# shellcheck source=launch/environment.sh
source "${here%/*}/environment.sh"

# shellcheck disable=SC2119 # no extra of its own
c3jax_environment
cd "$C3JAX_ROOT"
exec "$C3JAX_BIN/c3jax" train configs/quickstart.yaml "$@"
