# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the launchers, in the root of the repository.

dry_run=''

fail() {
  echo "$*" >&2
  exit 2
}

# Prints a command and runs it, unless this is a dry run.
run() {
  echo "+ $(quoted "$@")"
  [[ -n $dry_run ]] || "$@"
}

# The arguments as a shell reads them, quoted where that is needed.
quoted() {
  local arg out=()
  for arg in "$@"; do
    [[ $arg =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || arg="'${arg//\'/\'\\\'\'}'"
    out+=("$arg")
  done
  echo "${out[*]}"
}

check_stage() {
  (($#)) || fail "after -- comes what is to run: STAGE --config=configs/X.py --workdir=DIR"
  [[ " $*" == *" --workdir="* ]] || fail "--workdir=DIR is missing: one that all machines see"
}

# again RETRIES PREPARE COMMAND ARG…: prepares and runs a command until it is done.
#
# Exit code 0 is done and 2 a mistake of the user, which another try would repeat. Everything else
# (143 told to stop, 75 and 134 another process is gone, 255 no connection) is tried again: a
# stage goes on from its last checkpoint.
again() {
  local retries=$1 prepare=$2 try code
  shift 2
  for ((try = 0; try <= retries; try++)); do
    "$prepare"
    code=0
    "$@" || code=$?
    case $code in
      0) return ;;
      2) return 2 ;;
    esac
    echo "exit code $code; start $((try + 1)) of at most $retries again" >&2
  done
  echo "given up" >&2
  return "$code"
}
