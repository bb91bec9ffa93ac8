# SPDX-License-Identifier: Apache-2.0
"""The launchers: what a dry run says, and what they do when a run is stopped or a slice is lost."""

import os
import pathlib
import re
import shlex
import shutil
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
  env = dict(os.environ, POLL_S="0", BACKOFF_S="0")
  if path:
    env["PATH"] = f"{path}:{env['PATH']}"
  done = subprocess.run(
    [ROOT / "launch" / script, *args],
    env=env,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
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
    "--node-id=audit",
    "--zone=us-west4-a",
    "--accelerator-type=v5litepod-64",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
  } <= set(create)
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
  assert (
    flags
    | {
      "nodes": "2",
      "ntasks-per-node": "1",
      "gpus-per-node": "8",
      "signal": "TERM@120",
      "requeue": "",
      "open-mode": "append",
    }
    == flags
  )
  (srun,) = re.findall(r"^srun .*", out, re.M)
  words = shlex.split(srun)
  assert words[2:5] == [".venv/bin/python", "-m", "auditdm_jax"]
  assert words[5:10] == [*stage, "--distributed"]
  assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in out


def test_dry_run_for_a_cluster():
  out = launch(
    "gke/jobset.sh",
    "audit",
    "--image=gcr.io/p/a:1",
    "--topology=8x8",
    "--spot",
    "--dry-run",
    "--",
    *STAGE,
  )
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
  user = dockerfile_user()
  assert pod["securityContext"] == {
    "runAsNonRoot": True,
    "runAsUser": user,
    "runAsGroup": user,
    "seccompProfile": {"type": "RuntimeDefault"},
  }
  assert container["securityContext"] == {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
  }
  assert container["args"] == [*STAGE, "--distributed"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  preempted, crashed = job["podFailurePolicy"]["rules"]
  assert preempted["action"] == "Count" and crashed["action"] == "FailJob"
  codes = {"containerName": "auditdm", "operator": "NotIn", "values": [75, 134, 137, 143, 255]}
  assert crashed["onExitCodes"] == codes
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 30


def dockerfile_user():
  """The number of the user that the training image runs as."""
  lines = (ROOT / "launch/gke/Dockerfile").read_text().splitlines()
  user = int(next(x.split()[1] for x in reversed(lines) if x.startswith("USER ")))
  assert any(x.startswith("RUN useradd ") and f"--uid {user} " in x for x in lines)
  return user


def test_pods_are_root_only_if_somebody_says_so():
  given = ["gke/jobset.sh", "a", "--image=i", "--topology=4x4", "--dry-run", "--user=0"]
  out = launch(*given, "--", *STAGE)
  assert "runAsNonRoot: false" in out and "runAsUser: 0" in out


def test_the_training_image_is_not_root_and_holds_what_runs_need():
  text = (ROOT / "launch/gke/Dockerfile").read_text()
  assert dockerfile_user() > 0
  copied = re.findall(r"^COPY (\S+) \S+$", text, re.M)
  assert set(copied) == {
    "launch/tpu/requirements.lock",
    "auditdm_jax",
    "configs",
    "data",
  }
  assert all((ROOT / source).exists() for source in copied)
  # Nothing is copied after USER: the files stay root's, so that a run cannot change its code.
  assert text.rindex("COPY ") < text.index("\nUSER ") < text.index("\nENTRYPOINT")


def test_arguments_reach_a_pod_as_they_were():
  given = ["two\nlines\tand 'a' \"b\"", "back\\slash\\n", "k: v # {[&*", "größer", "$(HOME) $$ $x"]
  out = launch(
    "gke/jobset.sh", "a", "--image=i", "--topology=4x4", "--dry-run", "--", *STAGE, *given
  )
  jobset = yaml.safe_load(out.partition("\n")[2].removesuffix("JOB\n"))
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  # Kubernetes takes one dollar of each pair.
  assert [arg.replace("$$", "$") for arg in container["args"]] == [*STAGE, *given, "--distributed"]
  assert "$(HOME)" not in out.replace("$$", "")


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
    (["tpu/pod.sh", "a/b", "--zone=z", "--", *STAGE], "NAME a/b: small letters"),
    *(
      (["tpu/pod.sh", "a", "--zone=z", f"--retries={n}", "--", *STAGE], f"--retries={n}: a whole")
      for n in ("abc", "-1", "010", "")
    ),
    *(
      (["gpu/slurm.sh", flag, "--", *STAGE], f"{flag}: a whole number, at least [01]")
      for flag in ("--gpus=a100:8", "--gpus=abc", "--gpus=0", "--nodes=abc", "--retries=1e3")
    ),
    (["gpu/slurm.sh", "--time=soon", "--", *STAGE], "--time=soon: such as 24:00:00"),
    *(
      (["gke/jobset.sh", "a", "--image=i", *flags, "--", *STAGE], message)
      for flags, message in [
        (["--topology=8"], "such as 4x4 or 2x2x2"),
        (["--topology=08x8"], "such as 4x4 or 2x2x2"),
        (["--topology=0x4"], "such as 4x4 or 2x2x2"),
        (["--topology=4x4", "--chips=0"], "--chips=0: a whole number, at least 1"),
        (["--topology=2x3", "--chips=4"], "has 6 chips, not a multiple of --chips=4"),
        (["--topology=4x4", "--retries=-1"], "--retries=-1: a whole number"),
        (["--topology=4x4", "--user=root"], "--user=root: a whole number"),
        (["--topology=4x4", "--image=a b"], "--image='a b': no name of an image"),
        (["--topology=4x4", "--account=a: b"], "--account='a: b'"),
      ]
    ),
    *(
      (
        ["gke/jobset.sh", name, "--image=i", "--topology=4x4", "--", *STAGE],
        "NAME .*: small letters",
      )
      for name in ("A", "a_b", "a-", "a\nb", "a: b")
    ),
  ],
)
def test_mistakes_are_told_before_anything_is_made(command, message, tmp_path):
  for name in ("gcloud", "sbatch", "kubectl"):
    program(tmp_path / name, f"touch {tmp_path}/used")
  out = launch(*command, path=tmp_path, code=2)
  assert re.search(message, out) and len(out.splitlines()) == 1
  assert not (tmp_path / "used").exists()


def test_without_gcloud_nothing_is_waited_for(tmp_path, monkeypatch):
  for name in ("bash", "dirname"):
    (tmp_path / name).symlink_to(shutil.which(name))
  monkeypatch.setenv("PATH", str(tmp_path))
  out = launch("tpu/pod.sh", "a", "--zone=z", "--", *STAGE, code=2)
  assert out == "there is no gcloud on the PATH\n"


# A slice that is not there at first, and is taken away in the middle of the first run. Each line of
# `answers` is a verb and what gcloud says to it once, instead of doing it.
GCLOUD = """
echo "$*" >>{log}
error="ERROR: (gcloud.compute.tpus.$3.$4)"
if answer=$(grep -m 1 "^$4 " {answers}); then
  sed -i "0,/^$4 /{{/^$4 /d}}" {answers}
  answer=${{answer#* }}
  [[ $answer == FAILS* ]] || {{ echo "$answer"; exit; }}
  echo "$error ${{answer#FAILS }}" >&2
  exit 1
fi
case $4 in
  describe)
    cat {state} 2>/dev/null && exit
    echo "$error NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/$5' was not found." >&2
    exit 1 ;;
  create)
    if [[ -e {state} ]]; then
      echo "$error ALREADY_EXISTS: Resource 'audit' already exists" >&2
      exit 1
    fi
    echo ACTIVE >{state} ;;
  delete) rm -f {state} ;;
  ssh)
    code=$(head -n 1 {codes})
    sed -i 1d {codes}
    [[ $code == 255 ]] && echo SUSPENDED >{state}
    exit "$code" ;;
esac
"""


def pod(tmp_path, codes, *, state="", answers=(), code=0):
  """What gcloud is asked to do while the runs end with these exit codes, and the output."""
  names = {name: tmp_path / name for name in ("log", "state", "codes", "answers")}
  names["codes"].write_text("".join(f"{c}\n" for c in codes))
  names["answers"].write_text("".join(f"{a}\n" for a in answers))
  if state:
    names["state"].write_text(f"{state}\n")
  program(tmp_path / "gcloud", GCLOUD.format(**names))
  args = ["audit", "--zone=z", "--retries=2", "--", *STAGE]
  out = launch("tpu/pod.sh", *args, path=tmp_path, code=code)
  verbs = [line.split()[3] for line in names["log"].read_text().splitlines()]
  return [verb for verb in verbs if verb != "describe"], out


def test_a_lost_slice_is_made_again_and_the_run_goes_on(tmp_path):
  verbs, out = pod(tmp_path, [255, 143, 0])
  once = ["scp", "ssh"]
  assert verbs == ["create", *once, "delete", "create", *once, *once, "delete"]
  assert "exit code 255" in out and "exit code 143" in out and "is deleted" in out


OFFLINE = "FAILS gcloud crashed (ConnectionError): HTTPSConnectionPool"
LOGGED_OUT = "FAILS There was a problem refreshing your current auth tokens: invalid_grant"
RUN = ["scp", "ssh", "delete"]


@pytest.mark.parametrize(
  ("state", "answers", "verbs"),
  [
    ("ACTIVE", [f"describe {LOGGED_OUT}"], RUN),
    ("", [f"create {OFFLINE}"], ["create", "create", *RUN]),
    ("SUSPENDED", [f"delete {OFFLINE}"], ["delete", "delete", "create", *RUN]),
    # It was not there yet when it was looked for.
    ("ACTIVE", ["describe FAILS NOT_FOUND: Resource 'audit' was not found"], ["create", *RUN]),
    # As in a night in the queue: what counts is failures in a row.
    (
      "ACTIVE",
      [*[f"describe {OFFLINE}"] * 9, "describe PROVISIONING", *[f"describe {OFFLINE}"] * 9],
      RUN,
    ),
  ],
)
def test_a_passing_failure_of_gcloud_is_not_the_end(tmp_path, state, answers, verbs):
  asked, out = pod(tmp_path, [0], state=state, answers=answers)
  assert asked == verbs and "is deleted" in out
  said = [a.partition("FAILS ")[2] for a in answers if "FAILS" in a and "NOT_FOUND" not in a]
  assert all(out.count(text) == said.count(text) for text in said)
  assert "NOT_FOUND" not in out


@pytest.mark.parametrize(
  ("answer", "verbs"),
  [
    (f"describe {LOGGED_OUT}", []),
    ("create FAILS INVALID_ARGUMENT: no such type", ["create"] * 10),
  ],
)
def test_a_lasting_failure_of_gcloud_ends_with_what_it_said(tmp_path, answer, verbs):
  asked, out = pod(tmp_path, [], answers=[answer] * 99, code=1)
  assert asked == verbs
  assert out.count(answer.partition("FAILS ")[2]) == 10 and "10 times in a row; given up" in out
  assert "audit may be there and cost money" in out and "still there" not in out


def test_the_archive_goes_through_no_link_that_somebody_planted(tmp_path, monkeypatch):
  shared = tmp_path / "shared"
  shared.mkdir()
  (tmp_path / "victim").write_text("kept")
  for name in ("auditdm_jax-audit.tar.gz", "auditdm_jax.tar.gz"):
    (shared / name).symlink_to(tmp_path / "victim")
  monkeypatch.setenv("TMPDIR", str(shared))
  program(
    tmp_path / "git",
    f'for a; do [[ $a == --output=* ]] && echo x >"${{a#*=}}" &&'
    f' stat -c "%a %n" "$(dirname "${{a#*=}}")" >>{tmp_path}/folders; done; true',
  )
  pod(tmp_path, [0])
  assert (tmp_path / "victim").read_text() == "kept"
  mode, folder = (tmp_path / "folders").read_text().split()
  assert mode == "700" and pathlib.Path(folder).parent == shared
  assert len(list(shared.iterdir())) == 2  # Nothing is left behind.


def test_a_mistake_is_not_tried_again_and_the_slice_is_named(tmp_path):
  verbs, out = pod(tmp_path, [2], code=2)
  assert verbs == ["create", "scp", "ssh"] and "audit is still there and costs money" in out


def test_tries_are_bounded(tmp_path):
  verbs, out = pod(tmp_path, [134, 75, 143], code=143)
  assert verbs.count("ssh") == 3 and "given up" in out


AGAIN = """
source launch/common.sh
sleep() {{ echo "pause $1"; }}
nothing() {{ :; }}
attempt() {{ code=${{codes[0]}}; codes=("${{codes[@]:1}}"); echo ran; return "$code"; }}
codes=({codes})
unset BACKOFF_S
again {retries} nothing attempt
"""


@pytest.mark.parametrize(
  ("codes", "retries", "ran", "pauses", "code"),
  [
    ([1] * 9, 100, 3, [60, 240], 1),  # not 101 starts of the same crash
    ([201] * 9, 100, 3, [60, 240], 201),
    ([1, 1, 0], 100, 3, [60, 240], 0),
    ([255, 137, 75, 134, 143, 0], 100, 6, [0] * 5, 0),
    ([1, 1, 143, 1, 1, 1], 100, 6, [60, 240, 0, 60, 240], 1),
    ([202, 0], 100, 1, [], 2),
    ([143] * 9, 0, 1, [], 143),
    ([1] * 9, 1, 2, [60], 1),
  ],
)
def test_a_crash_is_tried_twice_more_and_a_loss_at_once(codes, retries, ran, pauses, code):
  script = AGAIN.format(codes=" ".join(map(str, codes)), retries=retries)
  done = subprocess.run(
    ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
  )
  assert done.returncode == code, done.stderr
  lines = done.stdout.splitlines()
  assert lines.count("ran") == ran
  assert [int(line.split()[1]) for line in lines if line.startswith("pause")] == pauses


@pytest.mark.parametrize(
  ("code", "restarts", "again"),
  [
    (0, 0, False),
    (2, 0, False),
    (1, 0, False),
    (201, 0, False),
    (143, 0, True),
    (75, 3, True),
    (143, 100, False),
  ],
)
def test_a_stopped_slurm_job_is_queued_again(tmp_path, code, restarts, again):
  out = launch("gpu/slurm.sh", "--nodes=2", "--dry-run", "--", *STAGE)
  (tmp_path / "job.sh").write_text(out.partition("\n")[2].removesuffix("JOB\n"))
  program(tmp_path / "srun", f"exit {code}")
  program(tmp_path / "scontrol", f'echo "$*" >{tmp_path}/asked')
  done = subprocess.run(
    ["bash", tmp_path / "job.sh"],
    check=False,
    timeout=60,
    env=dict(
      os.environ,
      PATH=f"{tmp_path}:{os.environ['PATH']}",
      SLURM_JOB_ID="7",
      SLURM_RESTART_COUNT=str(restarts),
    ),
  )
  assert done.returncode == code
  asked = tmp_path / "asked"
  assert (asked.read_text() == "requeue 7\n") if again else not asked.exists()
