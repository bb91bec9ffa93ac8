#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a stage on every machine of a Cloud TPU slice. Makes the slice as a queued resource, waits
# for it, copies this checkout there, and starts again after a preemption until the stage is done.
#
#   launch/tpu/pod.sh NAME --zone=ZONE [--type=v5litepod-64] [--spot] [--keep] [--dry-run] -- \
#     train --config=configs/X.py --workdir=gs://BUCKET/RUN
#
#   --type       v5litepod-16, v5litepod-64, v6e-16, v5p-16 (which counts cores: 8 chips), …
#   --version    of the machines' image; by default the one that Google names for the type
#   --project    by default gcloud's
#   --retries    how often it is started again when it was lost (100); after a crash twice at most
#   --keep       the slice is not deleted when the stage is done
#   --dry-run    prints the commands instead of running them
#
# Needs gcloud and a checkout whose changes are committed: HEAD is what runs there. The workdir must
# be one that all machines see: gs:// or a mounted disk. Run again, it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/common.sh

name='' zone='' type=v5litepod-64 version='' project='' retries=100 spot='' keep=''
while (($#)); do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry-run) dry_run=1 ;;
    --) shift && break ;;
    -*) fail "unknown flag $1; see the head of $0" ;;
    *)
      [[ -z $name ]] || fail "two names: $name and $1"
      name=$1
      ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || fail "usage: $0 NAME --zone=ZONE [flags] -- STAGE --config=… --workdir=…"
check_name "$name"
check_number --retries "$retries" 0
check_stage "$@"
[[ -n $dry_run ]] || type -P gcloud >/dev/null || fail "there is no gcloud on the PATH"
case $type in
  v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
  v5p-*) version=${version:-v2-alpha-tpuv5} ;;
  v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
  *) [[ -n $version ]] || fail "--type=$type: give its --version too" ;;
esac
where=(--zone="$zone" --quiet ${project:+--project="$project"})
tpus=(gcloud compute tpus)

create() {
  run "${tpus[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
}

delete() {
  run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force
}

# Prints the state of the slice: NONE if there is none, UNKNOWN and code 1 if gcloud cannot tell.
state() {
  [[ -z $dry_run ]] || { echo ACTIVE && return; }
  "${tpus[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)' \
    2>"$scratch/stderr" && return
  if grep -q NOT_FOUND "$scratch/stderr"; then
    echo NONE
  else # The network or the login: there may be a slice all the same.
    cat "$scratch/stderr" >&2
    echo UNKNOWN
    return 1
  fi
}

# Returns when the slice is there; makes it anew if it was taken away. A failure of gcloud may pass,
# so it looks again; the tenth in a row is the end.
get_slice() {
  local now code failures=0
  while true; do
    code=0
    now=$(state) || code=$?
    case $now in
      ACTIVE) return ;;
      NONE) create || code=$? ;;
      FAILED | SUSPENDED) delete || code=$? ;;
    esac
    if ((code)); then failures=$((failures + 1)); else failures=0; fi
    if ((failures == 10)); then
      echo "gcloud failed $failures times in a row; given up" >&2
      kept="the slice $name may be there and cost money"
      return "$code"
    fi
    echo "$name is $now"
    sleep "${POLL_S:-30}"
  done
}

on_all() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# Copies HEAD there and runs the stage; the exit code is the greatest of all machines.
run_stage() {
  run git archive --format=tar.gz --prefix=auditdm_jax/ --output="$archive" HEAD &&
    run "${tpus[@]}" tpu-vm scp "$archive" "$name:auditdm_jax.tar.gz" "${where[@]}" --worker=all &&
    on_all "tar -xzf auditdm_jax.tar.gz && exec auditdm_jax/launch/tpu/worker.sh $(quoted "$@")"
}

# A folder of its own: in a shared one somebody else could put a link where the archive goes.
scratch=/dev/null
[[ -n $dry_run ]] || scratch=$(mktemp -d "${TMPDIR:-/tmp}/auditdm_jax.XXXXXXXXXX")
archive=$scratch/auditdm_jax.tar.gz
kept="the slice $name is still there and costs money"
trap '[[ -n $dry_run ]] || { rm -rf -- "$scratch"; echo "$kept"; }' EXIT
if [[ -n $dry_run ]]; then
  echo "# unless there is a slice $name already:"
  create
  echo "# when it is ACTIVE, and again after each preemption:"
fi
again "$retries" get_slice run_stage "$@"
if [[ -z $keep ]]; then
  delete
  kept="the slice $name is deleted"
fi
