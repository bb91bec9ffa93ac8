# SPDX-License-Identifier: Apache-2.0
"""The launchers: what a dry run says, and what they do when a run is stopped or a slice is lost."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
STAGE = [
  "train",
  "--config=configs/x.py:big",
  "--workdir=gs://bucket/run",
  "--config.a={'b': 'c d'}",
]


def launch(script, *args, path=None, code=0):
  """Runs a launcher, with a folder of stand-ins for its commands before the real ones."""
  env = dict(os.environ, POLL_S="0")
  if path:
    env["PATH"] = f"{path}:{env['PATH']}"
  done = subprocess.run(
    [ROOT / "launch" / script, *args], env=env, stdin=subprocess.DEVNULL, capture_output=True,
    text=True, timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
  return done.stdout + done.stderr


def commands(out):
  return [shlex.split(line[2:]) for line in out.splitlines() if line.startswith("+ ")]


def program(path, body):
  path.write_text(f"#!/usr/bin/env bash\n{body}\n")
  path.chmod(0o755)


def test_dry_run_for_a_pod_of_64_chips():
  out = launch("tpu/pod.sh", "audit", "--zone=us-west4-a", "--spot", "--dry-run", "--", *STAGE)
  create, archive, copy, ssh, delete = commands(out)
  assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "audit"]
  assert {
    "--node-id=audit", "--zone=us-west4-a", "--accelerator-type=v5litepod-64",
    "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
  } <= set(create)  # fmt: skip
  assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
  assert copy[3:5] == ["tpu-vm", "scp"] and copy[-1] == "--worker=all"
  assert ssh[3:6] == ["tpu-vm", "ssh", "audit"] and "--worker=all" in ssh
  unpack, start = ssh[-1].removeprefix("--command=").split(" && ")
  assert shlex.split(unpack) == ["tar", "-xzf", "auditdm_jax.tar.gz"]
  # Two shells read it, and the arguments arrive as they were.
  assert shlex.split(start) == ["exec", "auditdm_jax/launch/tpu/worker.sh", *STAGE]
  assert delete[3:6] == ["queued-resources", "delete", "audit"]


def test_dry_run_for_two_slurm_nodes():
  stage = [*STAGE[:2], "--workdir=/shared/run", STAGE[3]]
  out = launch(
    "gpu/slurm.sh", "--nodes=2", "--gpus=8", "--sbatch=--partition=h100", "--dry-run", "--", *stage
  )
  assert commands(out) == [["sbatch", "--partition=h100", "<<JOB"]]
  flags = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", out, re.M))
  assert flags | {
    "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "signal": "TERM@120", "requeue": "",
    "open-mode": "append",
  } == flags  # fmt: skip
  (srun,) = re.findall(r"^srun .*", out, re.M)
  words = shlex.split(srun)
  assert words[2:5] == [".venv/bin/python", "-m", "auditdm_jax"]
  assert words[5:10] == [*stage, "--distributed"]
  assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in out


def test_dry_run_for_a_cluster():
  out = launch(
    "gke/jobset.sh", "audit", "--image=gcr.io/p/a:1", "--topology=8x8", "--spot", "--dry-run", "--",
    *STAGE,
  )  # fmt: skip
  jobset = yaml.safe_load(out.partition("\n")[2].removesuffix("JOB\n"))
  assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "audit")
  (slice_,) = jobset["spec"]["replicatedJobs"]
  job = slice_["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 16 and job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "8x8",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["args"] == [*STAGE, "--distributed"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {"containerName": "auditdm", "operator": "In", "values": [2]}


@pytest.mark.parametrize(("topology", "machines"), [("4x4", 4), ("2x2x2", 2), ("16x16", 64)])
def test_a_pod_for_every_machine_of_the_slice(topology, machines):
  out = launch(
    "gke/jobset.sh", "a", "--image=i", f"--topology={topology}", "--dry-run", "--", *STAGE
  )
  assert f"parallelism: {machines}\n" in out


@pytest.mark.parametrize(
  ("command", "message"),
  [
    (["tpu/pod.sh", "--dry-run", "--", *STAGE], "usage: .*--zone=ZONE"),
    (["tpu/pod.sh", "a", "--zone=z", "--dry-run"], "after -- comes what is to run"),
    (["tpu/pod.sh", "a", "--zone=z", "--", "train"], "--workdir=DIR is missing"),
    (["tpu/pod.sh", "a", "--zone=z", "--type=v9-8", "--", *STAGE], "v9-8: give its --version too"),
    (["gpu/slurm.sh", "--node=2", "--", *STAGE], "unknown flag --node=2"),
    (["gke/jobset.sh", "a", "--image=i", "--topology=8", "--", *STAGE], "such as 4x4 or 2x2x2"),
  ],
)
def test_mistakes_are_told_before_anything_is_made(command, message, tmp_path):
  for name in ("gcloud", "sbatch", "kubectl"):
    program(tmp_path / name, f"touch {tmp_path}/used")
  assert re.search(message, launch(*command, path=tmp_path, code=2))
  assert not (tmp_path / "used").exists()


# A slice that is not there at first, and is taken away in the middle of the first run.
GCLOUD = """
echo "$*" >>{log}
case "$*" in
  *describe*) cat {state} 2>/dev/null || exit 1 ;;
  *create*) echo ACTIVE >{state} ;;
  *delete*) rm -f {state} ;;
  *ssh*)
    code=$(head -n 1 {codes})
    sed -i 1d {codes}
    [[ $code == 255 ]] && echo SUSPENDED >{state}
    exit "$code" ;;
esac
"""


def pod(tmp_path, codes, *, code=0):
  """What gcloud is asked to do while the runs end with these exit codes, and the output."""
  names = {name: tmp_path / name for name in ("log", "state", "codes")}
  names["codes"].write_text("".join(f"{c}\n" for c in codes))
  program(tmp_path / "gcloud", GCLOUD.format(**names))
  args = ["audit", "--zone=z", "--retries=2", "--", *STAGE]
  out = launch("tpu/pod.sh", *args, path=tmp_path, code=code)
  verbs = [
    next(w for w in line.split() if w in ("create", "delete", "describe", "scp", "ssh"))
    for line in names["log"].read_text().splitlines()
  ]
  return [verb for verb in verbs if verb != "describe"], out


def test_a_lost_slice_is_made_again_and_the_run_goes_on(tmp_path):
  verbs, out = pod(tmp_path, [255, 143, 0])
  once = ["scp", "ssh"]
  assert verbs == ["create", *once, "delete", "create", *once, *once, "delete"]
  assert "exit code 255" in out and "exit code 143" in out and "is deleted" in out


def test_a_mistake_is_not_tried_again_and_the_slice_is_named(tmp_path):
  verbs, out = pod(tmp_path, [2], code=2)
  assert verbs == ["create", "scp", "ssh"] and "audit is still there and costs money" in out


def test_tries_are_bounded(tmp_path):
  verbs, out = pod(tmp_path, [134, 75, 143], code=143)
  assert verbs.count("ssh") == 3 and "given up" in out


@pytest.mark.parametrize(
  ("code", "restarts", "again"), [(0, 0, False), (2, 0, False), (143, 0, True), (143, 100, False)]
)
def test_a_stopped_slurm_job_is_queued_again(tmp_path, code, restarts, again):
  out = launch("gpu/slurm.sh", "--nodes=2", "--dry-run", "--", *STAGE)
  (tmp_path / "job.sh").write_text(out.partition("\n")[2].removesuffix("JOB\n"))
  program(tmp_path / "srun", f"exit {code}")
  program(tmp_path / "scontrol", f'echo "$*" >{tmp_path}/asked')
  done = subprocess.run(
    ["bash", tmp_path / "job.sh"], check=False, timeout=60,
    env=dict(
      os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7",
      SLURM_RESTART_COUNT=str(restarts),
    ),
  )  # fmt: skip
  assert done.returncode == code
  asked = tmp_path / "asked"
  assert (asked.read_text() == "requeue 7\n") if again else not asked.exists()
