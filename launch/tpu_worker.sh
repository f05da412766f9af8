#!/usr/bin/env bash
# Runs a command on a worker of a TPU slice, started there by tpu_vm.sh in the source's folder; with a bucket, runs/ is brought
# from it first and, by worker 0, back to it every two minutes and at the end.
#   tpu_worker.sh WORKER BUCKET COMMAND [ARGUMENT...]      BUCKET: gs://..., or "" for none
# Its output goes to run.log, its process id to run.pid and, when it has ended, its exit status to run.status.
set -uo pipefail
worker=$1 bucket=$2
shift 2
exec >run.log 2>&1 </dev/null
echo $$ >run.pid
rm -f run.status

save() {
  [[ -z "$bucket" || "$worker" != 0 || ! -d runs ]] || gcloud storage rsync --recursive --quiet runs "$bucket/runs"
}

if [[ -n "$bucket" ]] && gcloud storage ls "$bucket/runs" >/dev/null 2>&1; then
  mkdir -p runs && gcloud storage rsync --recursive --quiet "$bucket/runs" runs
fi
PATH="$PWD/.venv/bin:$PATH" C3JAX_DISTRIBUTED=1 "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM
(while sleep 120; do save; done) &
saver=$!
while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends a wait
wait "$child"
status=$?
kill "$saver" 2>/dev/null
save
echo "$status" >run.status
exit "$status"
