# shellcheck shell=bash
# Sourced by the scripts beside it, after `set -euo pipefail`; does nothing but define.
#
#   c3jax_environment [EXTRA...]   makes the virtual environment that c3jax runs in, or brings it up to date
#                                  (environment.py), and gives C3JAX_ROOT, the source, and C3JAX_BIN, its programs.
#
# Read from the caller's environment, all optional:
#   PYTHON        the interpreter to make it with (3.11 or newer)
#   C3JAX_VENV    where it lies (.venv in the source)
#   C3JAX_EXTRAS  more extras of pyproject.toml, say "cuda" or "tpu"
#
# What cannot be done is said in one sentence on stderr, with exit status 2.

C3JAX_ROOT="$(cd -P "${BASH_SOURCE[0]%/*}/.." && pwd)"
C3JAX_VENV="${C3JAX_VENV:-$C3JAX_ROOT/.venv}"
[[ "$C3JAX_VENV" == /* ]] || C3JAX_VENV="$PWD/$C3JAX_VENV"
C3JAX_BIN="$C3JAX_VENV/bin"

c3jax_environment() {
  local python where="on the PATH: install one, or name it in PYTHON"
  local candidates=("$C3JAX_BIN/python" python3 python3.13 python3.12 python3.11)
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON") where="at PYTHON=$PYTHON"; fi
  for python in "${candidates[@]}"; do # one may be a shim with nothing behind it
    if "$python" -I -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; then
      # shellcheck disable=SC2086 # several words
      "$python" -I "$C3JAX_ROOT/launch/environment.py" "$C3JAX_VENV" "$@" ${C3JAX_EXTRAS:-} || exit $?
      return
    fi
  done
  echo "c3jax: no Python of version 3.11 or newer with its module ensurepip (Debian, Ubuntu: python3-venv) was found $where." >&2
  exit 2
}
