# SPDX-License-Identifier: Apache-2.0
"""audit: from models and images of your own to a report, in one command.

  python -m auditdm_jax audit --auditor=DIR --target=DIR --references=A,B --images=DIR --workdir=W

1. The config that follows from the flags is written to W/config.py. Every other stage takes
   it as --config=W/config.py. Any --config.key=value goes into it.
2. The preflight asks whether these models can be audited at all; what is wrong ends the run.
3. The auditor is trained by GRPO against the target (--steps=0: it asks as it is).
4. The trained and the untrained auditor, and questions that you have, sweep the images.
5. Finds are verified, failures are grouped into modes, and the report is written.

The same command run again continues where it stopped. That no failure was found is a result: the
report then says how many questions were compared, and below which rate failures are.

Reads:  the models, the images, and questions about them.
Writes: WORKDIR, with WORKDIR/report/index.html (docs/run-folder.md).
Costs:  at most --budget probes, each answered by target and references at most once; verification
        asks at most twice as many questions more. The preflight says how long that takes here.
"""

import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit.summary import Summary
from auditdm_jax.stages import discover, preflight, report, screen, train, verify
from auditdm_jax.stages.context import Context


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "audit") as ctx:
    screen.show(run(ctx), ctx.folder.path, spent=ctx.spent())
  return 0


def run(ctx: Context) -> Summary:
  """Runs the stages in order; those that are done are not run again."""
  ctx.stage("preflight", lambda: preflight.run(ctx))
  ctx.stage("train", lambda: train.run(ctx))
  ctx.stage("discover", lambda: discover.run(ctx))
  ctx.stage("verify", lambda: verify.run(ctx))
  return ctx.stage("report", lambda: report.run(ctx))
