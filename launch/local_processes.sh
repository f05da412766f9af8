#!/usr/bin/env bash
# Runs N processes of one command on this machine as the processes of one program: each learns from its environment where the
# first one is (C3JAX_COORDINATOR, a free port here), how many they are (C3JAX_PROCESSES) and which it is (C3JAX_PROCESS).
#   launch/local_processes.sh 2 c3jax train quickstart --run-dir runs/two
# Every line of output begins with the process's number. When one fails the others are ended, and it is named. SIGTERM and
# Ctrl-C are passed on. Exit status: 0, that of the first that failed, or 75 when all stopped on request.
set -uo pipefail

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
  echo "c3jax: expected local_processes.sh N COMMAND [ARGUMENT...], got: $*" >&2
  exit 2
fi
readonly stopped=75
count=$1
shift
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || { echo "c3jax: expected bash 5.1 or newer, got $BASH_VERSION" >&2; exit 2; }

pids=()
signalled=""
end_all() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null; done
}
# What runs in the background of a script does not hear Ctrl-C: it gets SIGTERM, the request to stop, for both.
trap 'signalled=TERM; end_all' TERM
trap 'signalled=INT; end_all' INT

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')" || exit 2
for ((process = 0; process < count; process++)); do
  [[ -z "$signalled" ]] || break
  # The command itself is the child, so that signals reach it; only its output goes through sed.
  C3JAX_COORDINATOR="127.0.0.1:$port" C3JAX_PROCESSES=$count C3JAX_PROCESS=$process \
    "$@" > >(exec sed -u "s/^/$process: /") 2> >(exec sed -u "s/^/$process: /" >&2) &
  pids+=($!)
done
[[ -z "$signalled" ]] || end_all # those that began while it came

status=0
running=${#pids[@]}
stops=0
while ((running > 0)); do
  wait -n -p ended "${pids[@]}"
  code=$?
  [[ -n "${ended:-}" ]] || continue # a signal came, nothing ended
  for process in "${!pids[@]}"; do
    if [[ "${pids[process]}" == "$ended" ]]; then break; fi
  done
  unset "pids[process]"
  running=$((running - 1))
  ((code != stopped)) || stops=$((stops + 1))
  if ((code != 0 && code != stopped && status == 0)) && [[ -z "$signalled" || $code -lt 128 ]]; then
    status=$code
    echo "c3jax: process $process ended with exit status $code; ending the others" >&2
    end_all
  fi
done
wait # for what is still being written
if ((status == 0 && stops > 0)); then
  ((stops == count)) && exit "$stopped"
  status=1
  echo "c3jax: $stops of $count processes stopped on request, the others did not" >&2
fi
if ((status == 0)) && [[ -n "$signalled" ]]; then
  [[ "$signalled" == INT ]] && exit 130
  exit 143
fi
exit "$status"
