#!/usr/bin/env bash
# A run on a TPU VM or a slice of several, through gcloud. docs/tpu.md goes from nothing to a run.
#   launch/tpu_vm.sh run --project P --zone Z --name N --type v5litepod-8 --spot --bucket gs://B -- c3jax train quickstart
# What it does, first word:
#   create   ask for the slice as a queued resource, or take the one of that name, and wait for it
#   install  copy this source's tracked files to every worker and install them with the extra tpu
#   start    start the command on every worker
#   logs     follow worker 0's output to the command's end
#   status   the queued resource's state
#   stop     ask the command to stop: it writes a checkpoint first
#   run      all of it; when a spot slice is taken away, again on a new one, where the bucket has what was done
#   delete   delete the slice and its disks; nothing else ever does, but for what is left of one that was taken away
# Options: --type v5litepod-8, v6e-8, v5p-8, v4-8 ... (v5litepod-8); --runtime VERSION (by the type); --spot; --bucket
# gs://BUCKET/FOLDER, where runs/ is kept (a slice that is taken away loses its disks); --dry-run prints the commands.
set -euo pipefail
root="$(cd -P "${BASH_SOURCE[0]%/*}/.." && pwd)"

fail() {
  echo "c3jax: $1." >&2
  exit 2
}

action="${1:-}" project="" zone="" name="" type=v5litepod-8 runtime="" bucket="" spot="" dry="" command=()
[[ "$action" =~ ^(create|install|start|logs|status|stop|run|delete)$ ]] ||
  fail "expected one of create, install, start, logs, status, stop, run, delete, got ${action:-nothing}"
shift
while (($#)); do
  case "$1" in
    --project | --zone | --name | --type | --runtime | --bucket)
      [[ $# -gt 1 && "$2" != -* ]] || fail "$1: expected a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --spot) spot=--spot && shift ;;
    --dry-run) dry=yes && shift ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option $1" ;;
  esac
done
for option in project zone name; do [[ -n "${!option}" ]] || fail "--$option: expected a value, got none"; done
[[ ! "$action" =~ ^(start|run)$ || ${#command[@]} -gt 0 ]] || fail "expected a command after --, got none"
[[ -z "$bucket" || "$bucket" == gs://* ]] || fail "--bucket: expected gs://..., got $bucket"
case "$type" in
  v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
  v4-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
  *) [[ -n "$runtime" ]] || fail "--runtime: expected a value for type $type, got none" ;;
esac
where=("--project=$project" "--zone=$zone")

do_it() { # run a command, or print it
  if [[ -n "$dry" ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}
queued() { do_it gcloud compute tpus queued-resources "$@" "${where[@]}"; }
on_workers() { do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

read_state() { # of the queued resource; nothing where there is none
  [[ -n "$dry" ]] ||
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" 2>/dev/null || true
}

create() {
  local state
  state="$(read_state)"
  if [[ "$state" =~ ^(SUSPENDED|SUSPENDING|FAILED)$ ]]; then # taken away: it never comes back
    queued delete "$name" --force --quiet
    state=""
  fi
  if [[ -z "$state" ]]; then
    queued create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" ${spot:+"$spot"}
  fi
  until [[ -n "$dry" || "$state" == ACTIVE ]]; do
    state="$(read_state)"
    [[ "$state" != FAILED ]] || fail "the queued resource $name failed: tpu_vm.sh status says why"
    echo "c3jax: $name is ${state:-not there yet}" >&2
    [[ "$state" == ACTIVE ]] || sleep "${C3JAX_POLL_SECONDS:-30}"
  done
}

install() {
  local archive
  archive="$(mktemp -d)/c3jax.tar.gz"
  do_it git -C "$root" archive --format=tar.gz --output "$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$name:c3jax.tar.gz" "${where[@]}" --worker=all
  # The image's Python is older than c3jax's; uv brings one of its own.
  on_workers all "mkdir -p c3jax && tar -xzf c3jax.tar.gz -C c3jax && cd c3jax && python3 -m pip install --quiet --user uv &&\
 ~/.local/bin/uv python install --quiet 3.12 && source launch/environment.sh &&\
 PYTHON=\$(~/.local/bin/uv python find 3.12) c3jax_environment tpu"
}

start() {
  # Each worker learns its number from the machine; JAX finds the others by itself.
  on_workers all "cd c3jax && worker=\$(curl -s -H Metadata-Flavor:Google\
 http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) &&\
 (setsid bash launch/tpu_worker.sh \"\${worker:-0}\" '$bucket' $(printf '%q ' "${command[@]}") >/dev/null 2>&1 </dev/null &)"
}

logs() {
  on_workers 0 "cd c3jax && sleep 2; tail -n +1 -F --pid=\$(cat run.pid) run.log"
}

run() {
  local status
  create
  install
  start
  while true; do
    logs || true # it also ends when the slice is taken away
    [[ -z "$dry" ]] || return 0
    if [[ "$(read_state)" == ACTIVE ]]; then
      status="$(on_workers 0 "cat c3jax/run.status" 2>/dev/null || true)"
      [[ -z "$status" ]] || exit "$status"
    else
      echo "c3jax: $name was taken away; asking for another" >&2
      create
      install
      start
    fi
  done
}

case "$action" in
  status) queued describe "$name" ;;
  delete) queued delete "$name" --force --quiet ;;
  stop) on_workers all "kill -TERM \$(cat c3jax/run.pid)" ;;
  *) "$action" ;;
esac
