#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a stage on a TPU slice of a GKE cluster, as a JobSet: one pod per machine, all of them
# started again together after a preemption until the stage is done.
#
#   launch/gke/jobset.sh NAME --image=IMAGE --topology=8x8 [--accelerator=tpu-v5-lite-podslice] \
#     [--spot] [--dry-run] -- train --config=configs/X.py --workdir=gs://BUCKET/RUN
#
#   --image            built from this repository: docker build -f launch/gke/Dockerfile -t IMAGE .
#   --accelerator      tpu-v5-lite-podslice, tpu-v6e-slice or tpu-v5p-slice
#   --topology         of the slice: 4x4, 8x8, 2x2x2, …
#   --chips            of one machine (4)
#   --account          Kubernetes service account that may write to the bucket (default)
#   --user             number of the user in the pods (10001, that of the image). Nodes whose
#                      containerd lacks device_ownership_from_security_context give devices to
#                      root only: --user=0 there
#   --retries          how often all pods are started again after a preemption or a lost pod (30);
#                      a crash ends the JobSet, since that cannot wait between two tries
#   --dry-run          prints the JobSet instead of applying it
#
# The cluster needs the JobSet controller (kubectl apply --server-side -f
# https://github.com/kubernetes-sigs/jobset/releases/download/v0.8.1/manifests.yaml) and a node pool
# of that accelerator and topology.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/common.sh

name='' image='' accelerator=tpu-v5-lite-podslice topology='' chips=4 account=default retries=30
user=10001
spot=''
while (($#)); do
  case $1 in
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --user=*) user=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --spot) spot=1 ;;
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
[[ -n $name && -n $image && -n $topology ]] ||
  fail "usage: $0 NAME --image=IMAGE --topology=8x8 [flags] -- STAGE --config=… --workdir=…"
check_name "$name"
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "--image=$(quoted "$image"): no name of an image"
[[ $accelerator =~ ^[a-z0-9-]+$ ]] || fail "--accelerator=$(quoted "$accelerator"): such as tpu-v6e-slice"
[[ $account =~ ^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$ ]] || fail "--account=$(quoted "$account"): no name of one"
[[ $topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] ||
  fail "--topology=$topology: such as 4x4 or 2x2x2"
check_number --chips "$chips" 1
check_number --retries "$retries" 0
check_number --user "$user" 0
check_stage "$@"
all=$((${topology//x/*}))
((all % chips == 0)) ||
  fail "--topology=$topology has $all chips, not a multiple of --chips=$chips of one machine"
machines=$((all / chips))

# A string of JSON, which YAML reads as it is; it would fold the lines of its own ones.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//$'\r'/\\r}"
}
args() {
  local arg
  for arg in "$@" --distributed; do
    # Kubernetes makes one dollar of two, and would put its variables for $(NAME).
    printf '                    - %s\n' "$(json "${arg//\$/\$\$}")"
  done
}
spot_selector=${spot:+"
                cloud.google.com/gke-spot: 'true'"}
codes=$(IFS=,; echo "${lost[*]}")

job=$(
  cat <<JOB
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$name"
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $retries
    rules:
      # A mistake of the user or a crash, which another try would repeat.
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $machines
          completions: $machines
          completionMode: Indexed
          backoffLimit: 0  # One pod alone cannot come back: all start again.
          podFailurePolicy:
            rules:
              # A preempted pod, whatever its code: all start again.
              - action: Count
                onPodConditions: [{type: DisruptionTarget, status: "True"}]
              - action: FailJob
                onExitCodes: {containerName: auditdm, operator: NotIn, values: [$codes]}
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: "$account"
              # From SIGTERM: to end the step and write the checkpoint.
              terminationGracePeriodSeconds: 120
              # The user of launch/gke/Dockerfile.
              securityContext:
                runAsNonRoot: $( ((user)) && echo true || echo false)
                runAsUser: $user
                runAsGroup: $user
                seccompProfile: {type: RuntimeDefault}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: "$accelerator"
                cloud.google.com/gke-tpu-topology: "$topology"$spot_selector
              containers:
                - name: auditdm
                  image: "$image"
                  securityContext:
                    allowPrivilegeEscalation: false
                    capabilities: {drop: [ALL]}
                  args:
$(args "$@")
                  ports:
                    - containerPort: 8471
                    - containerPort: 8476
                  resources:
                    requests: {google.com/tpu: $chips}
                    limits: {google.com/tpu: $chips}
JOB
)
if [[ -n $dry_run ]]; then
  echo "+ kubectl apply -f - <<'JOB'"
  echo "$job"
  echo "JOB"
else
  kubectl apply -f - <<<"$job"
  echo "its log: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name --max-log-requests=$machines"
fi
