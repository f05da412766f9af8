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
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "c3jax: expected bash 4.4 or newer, got $BASH_VERSION" >&2
  exit 2
fi

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')" || exit 2

pids=()
signalled=""
watchdog=""
end_all() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null; done
}
for ((process = 0; process < count; process++)); do
  # The command itself is the child, so that signals reach it; only its output goes through sed.
  C3JAX_COORDINATOR="127.0.0.1:$port" C3JAX_PROCESSES=$count C3JAX_PROCESS=$process \
    "$@" > >(exec sed -u "s/^/$process: /") 2> >(exec sed -u "s/^/$process: /" >&2) &
  pids+=($!)
done
# After the processes are there: one that is just being made would have these traps too, and outlive the signal. What runs in
# the background of a script does not hear Ctrl-C: it gets SIGTERM, the request to stop, for both.
trap 'signalled=TERM; end_all' TERM
trap 'signalled=INT; end_all' INT

status=0
stops=0
while ((${#pids[@]} > 0)); do
  for process in "${!pids[@]}"; do # `wait -n` would miss one that has ended before it is called
    if kill -0 "${pids[process]}" 2>/dev/null; then continue; fi
    wait "${pids[process]}"
    code=$?
    unset "pids[process]"
    ((code != stopped)) || stops=$((stops + 1))
    if ((code != 0 && code != stopped && status == 0)) && [[ -z "$signalled" || $code -lt 128 ]]; then
      status=$code
      echo "c3jax: process $process ended with exit status $code; ending the others" >&2
      end_all
      # One that waits for the dead one's share of a sum hears nothing any more.
      (trap - TERM INT && sleep "${C3JAX_GRACE_SECONDS:-60}" && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
      watchdog=$!
    fi
  done
  sleep 0.2
done
[[ -z "$watchdog" ]] || kill "$watchdog" 2>/dev/null
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
