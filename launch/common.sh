# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the launchers, in the root of the repository.

dry_run=''

fail() {
  local said="$*"
  echo "${said//$'\n'/ }" >&2
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

# check_number FLAG VALUE LEAST: a whole number, written so that bash does not take it for an octal one.
check_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    fail "$1=$2: a whole number, at least $3"
  fi
}

# A name of Kubernetes and of Google Cloud.
check_name() {
  [[ $1 =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "NAME $(quoted "$1"): small letters, digits and - only, and no - at an end"
}

# How a run ends that was stopped, or that has lost another process or the connection: 75 and 134
# of the program itself, 137 and 143 by signals, 255 of ssh. It goes on from its last checkpoint.
lost=(75 134 137 143 255)

# again RETRIES PREPARE COMMAND ARG…: prepares and runs a command until it is done.
#
# Exit code 0 is done; 2 (202 of one of several processes) is a mistake of the user, which another
# try would repeat. A run that was lost starts again at once. Anything else is a crash: it may have
# been the machine's, so there are two more tries in a row, after BACKOFF_S (60) and 4 times that.
again() {
  local retries=$1 prepare=$2 try code crashes=0
  shift 2
  for ((try = 1; ; try++)); do
    "$prepare"
    code=0
    "$@" || code=$?
    case $code in
      0) return ;;
      2 | 202) return 2 ;;
    esac
    if [[ " ${lost[*]} " == *" $code "* ]]; then crashes=0; else crashes=$((crashes + 1)); fi
    if ((try > retries || crashes > 2)); then
      echo "exit code $code after $try starts, $crashes crashes in a row; given up" >&2
      return "$code"
    fi
    echo "exit code $code; start $try of at most $retries again" >&2
    sleep "$((${BACKOFF_S:-60} * crashes * crashes))"
  done
}
