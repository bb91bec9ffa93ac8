#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a stage on the GPUs of several nodes of a SLURM cluster, one process per node, and queues it
# again after a preemption or at the time limit until the stage is done. A crash ends it.
#
#   launch/gpu/slurm.sh --nodes=2 [--gpus=8] [--time=24:00:00] [--dry-run] -- \
#     train --config=configs/X.py --workdir=/shared/runs/first
#
#   --nodes      how many (1)
#   --gpus       of each node (8)
#   --time       limit of one start; 120 s before it, the run saves itself and is queued again
#   --retries    how often it is queued again when it was stopped or lost a node (100)
#   --sbatch     a further flag for sbatch, such as --sbatch=--partition=h100; can be repeated
#   --dry-run    prints the job instead of submitting it
#
# The repository and the workdir must lie on a disk that all nodes see.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/common.sh
source launch/venv.sh

nodes=1 gpus=8 time=24:00:00 retries=100 more=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --sbatch=*) more+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    --) shift && break ;;
    *) fail "unknown flag $1; see the head of $0" ;;
  esac
  shift
done
check_number --nodes "$nodes" 1
check_number --gpus "$gpus" 1
check_number --retries "$retries" 0
[[ $time =~ ^[0-9]+([:-][0-9]+)*$ ]] || fail "--time=$(quoted "$time"): such as 24:00:00 or 2-00:00:00"
check_stage "$@"

job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=auditdm_jax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=auditdm_jax-%j.log
cd $(quoted "$PWD")
# All GPUs of a node belong to its one process.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
code=0
srun --kill-on-bad-exit=1 .venv/bin/python -m auditdm_jax $(quoted "$@") --distributed || code=\$?
# Stopped, or another process is gone: it goes on from the last checkpoint. A crash would repeat.
if [[ " ${lost[*]} " == *" \$code "* ]] && ((\${SLURM_RESTART_COUNT:-0} < $retries)); then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
JOB
)
if [[ -n $dry_run ]]; then
  echo "+ $(quoted sbatch ${more[@]+"${more[@]}"}) <<'JOB'"
  echo "$job"
  echo "JOB"
else
  ensure_venv requirements.txt launch/gpu/requirements.txt
  sbatch ${more[@]+"${more[@]}"} <<<"$job"
fi
