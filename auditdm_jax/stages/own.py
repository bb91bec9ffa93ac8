# SPDX-License-Identifier: Apache-2.0
"""The config of an audit of your own models and images, from a handful of flags.

`expand` turns the flags of the stage `audit` into a config file in the workdir and into the two
flags that every stage has.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import pprint
import re
import shlex
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from auditdm_jax.core import jsonio, overrides, paths
from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError, build, did_you_mean
from auditdm_jax.rectify import recipes
from auditdm_jax.stages import sections

CONFIG = "config.py"
PROMPTS, GROUP = 8, 8  # Images of a step of GRPO, and completions about each.
_LARGE = 2 << 30  # Bytes of weights from which a model computes in bfloat16.
_SKILLS = paths.shared() / "data/vqav2/skills.yaml"
_KINDS = _SKILLS.with_name("kinds.yaml")

FLAGS = flags.FlagValues()
_AUDITOR = flags.DEFINE_string("auditor", None, "The auditor's folder.", flag_values=FLAGS)
_TARGET = flags.DEFINE_string("target", None, "The audited model.", flag_values=FLAGS)
_REFERENCES = flags.DEFINE_list(
  "references", None, "Models whose agreement it is held to, as A,B.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_string(
  "images",
  None,
  "A folder of images, a JSONL file that names them, or a Parquet, Arrow or TFDS data set.",
  flag_values=FLAGS,
)
_QUESTIONS = flags.DEFINE_string(
  "questions",
  None,
  'A JSONL file of {"image": …, "question": …, "answer": …} about a folder of images; by default'
  " the questions.jsonl in it, if there is one. The auditor asks in any case.",
  flag_values=FLAGS,
)
_STEPS = flags.DEFINE_integer(
  "steps",
  None,
  f"Of GRPO, each of {PROMPTS * GROUP} probes; 0 = the auditor asks as it is. By default half of"
  " the budget.",
  lower_bound=0,
  flag_values=FLAGS,
)
_BUDGET = flags.DEFINE_integer(
  "budget",
  4096,
  "Probes: questions about an image that GRPO and the sweep put to the models, in all. Each model"
  " answers a probe at most once. Verification asks at most twice as many questions more; modes"
  " are measured on an eighth as many, or your questions about the fresh images, and on at most"
  " another eighth.",
  lower_bound=1,
  flag_values=FLAGS,
)
_IMAGE_SERVICE = flags.DEFINE_string(
  "image_service",
  None,
  "host:port of an image service: probes are also about edited and generated images.",
  flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spending:
  """How a budget of probes is spent.

  Attributes:
    steps: of GRPO.
    batch: probes of the sweep between two decisions on who asks.
    batches: of the sweep.
  """

  steps: int
  batch: int
  batches: int


def spend(budget: int, steps: int | None) -> Spending:
  """Divides a budget of probes: half of it is GRPO's, unless `steps` says otherwise.

  Raises:
    UserError: the steps leave nothing for the sweep.
  """
  each = PROMPTS * GROUP
  steps = budget // 2 // each if steps is None else steps
  left = budget - steps * each
  if left < 1:
    raise UserError(
      f"--steps={steps}: with {each} probes each they leave nothing of --budget={budget} for the"
      f" sweep; at most {(budget - 1) // each} steps, or a larger budget"
    )
  batch = max(min(left // 4, 1024), 1)
  return Spending(steps=steps, batch=batch, batches=left // batch)


def expand(argv: Sequence[str]) -> list[str]:
  """Returns the arguments of the stage `audit`: --config and --workdir in place of its own flags.

  Writes the config. Arguments that name a config are returned as they are.

  Args:
    argv: the stage's name, and flags.

  Raises:
    UserError: flags that are missing or wrong, images that cannot be read, or a workdir with the
      results of another config.
  """
  if any(re.match("--?config(=|$)", arg) for arg in argv):
    return list(argv)
  FLAGS.unparse_flags()
  others, given = overrides.split(argv[1:])
  rest = FLAGS([argv[0], *others], known_only=True)[1:]
  _check(rest)
  workdir = paths.as_path(_text(_WORKDIR))
  if paths.is_remote(workdir):
    raise UserError(
      f"--workdir={_WORKDIR.value}: flags make a config on this machine; run with a local workdir,"
      " and then with its --config for a remote one"
    )
  config = make()
  overrides.apply(config, given, sections.AuditConfig)
  build(sections.AuditConfig, config, name="config")
  _check_images(config)
  _write(workdir, config, argv)
  return [argv[0], f"--config={workdir / CONFIG}", f"--workdir={_WORKDIR.value}", *rest]


def _check(rest: Sequence[str]) -> None:
  """Raises a UserError if a flag is missing, or one of `rest` is no flag at all."""
  known = [*FLAGS, *flags.FLAGS]
  for arg in rest:
    name = arg.lstrip("-").partition("=")[0]
    if not arg.startswith("-") or name.removeprefix("no") not in known and name not in known:
      raise UserError(f"audit: not a flag: {arg}{did_you_mean(name, known)}")
  for flag in (_AUDITOR, _TARGET, _REFERENCES, _IMAGES, _WORKDIR):
    if not flag.value:
      raise UserError(f"audit: --{flag.name} is missing; {FLAGS[flag.name].help}")


def make() -> ConfigDict:
  """Returns the config that the flags say, for a GPU or a CPU."""
  spending, budget = spend(_BUDGET.value, _STEPS.value), _BUDGET.value
  auditor, target, references = _text(_AUDITOR), _text(_TARGET), _REFERENCES.value or []
  models = [auditor, target, *references]
  prompts = {"question": PROMPTS}
  if _IMAGE_SERVICE.value:
    prompts = {"question": PROMPTS // 2, "edit": PROMPTS // 4, "generate": PROMPTS // 4}
  c = ConfigDict()
  c.seed = 0
  c.world = dict(name="", gaps="")  # no oracle
  c.models = dict(
    auditor=_place(auditor),
    target=_place(target),
    references=tuple(map(_place, references)),
    dtype="bfloat16" if max(map(_weight, models)) > _LARGE else "float32",
  )
  c.pool = dict(
    builder="",
    data_dir="",
    dataset=_place(_text(_IMAGES)),
    images="train",
    heldout="heldout",
    fresh="fresh",
    questions=_place(_QUESTIONS.value) if _QUESTIONS.value else "",
  )
  c.images = dict(address=_IMAGE_SERVICE.value or "", client=dict(local_edits=True))
  c.bank = dict(max_new_tokens=16, batch_size=128, cascade=True, abstentions=("unanswerable",))
  c.judge = dict()
  c.rollout = dict(prompts=prompts, max_new_tokens=dict(question=64, caption=96, instruction=64))
  c.grpo = dict(group_size=GROUP)
  c.reward = dict(novelty="off")
  # As the paper's, in less memory.
  c.optim = dict(
    steps=spending.steps, lr=3e-6, final_lr=1e-6, remat=True, head_chunk=1024, micro_rows=4
  )
  c.mesh = dict(fsdp=-1)
  c.rules = ()
  harvest = (spending.steps // 2,) if spending.steps >= 20 else ()
  c.checkpoints = dict(checkpoint_every=20, keep=1, harvest=harvest)
  c.discover = dict(
    probes=spending.batch * spending.batches,
    batch=spending.batch,
    search_probes=max(budget // 8, 1),
    proposals=4,
  )
  # A find is asked about six times: again, in two other wordings, on two changed images, on none.
  c.verify = dict(limit=max(budget // 3, 1), labelled=max(budget // 4, 1), paraphrases=2, jitters=2)
  c.taxonomy = dict(
    skills=str(_SKILLS),
    kinds=str(_KINDS),
    fresh=dict(asks=max(budget // 8, 1)),
  )
  c.rectify = dict(
    recipe=dict(epochs=3, batch_size=32, micro_rows=8, lr=1e-5, remat=True, parts=recipes.NO_TOWER),
    length=1152,
    suffix=32,
  )
  # Further rounds, if a loop wants some, cost about as much as this one.
  c.rounds = dict(count=1, steps=spending.steps // 2, probes=c.discover["probes"])
  return c


def _text(flag: flags.FlagHolder[str | None]) -> str:
  """The value of a flag that `_check` has found to be given."""
  if flag.value is None:
    raise ValueError(f"--{flag.name} is not given")
  return flag.value


def _place(path: str) -> str:
  """A path that holds from any folder; what is no path here, such as an endpoint, as it is."""
  return os.path.abspath(path) if os.path.exists(path) else path


def _weight(path: str) -> int:
  """Bytes of the weights in a folder; 0 for what is no folder here."""
  suffixes = (".safetensors", ".npz")
  files = pathlib.Path(path).glob("*") if os.path.isdir(path) else [pathlib.Path(path)]
  return sum(f.stat().st_size for f in files if f.suffix in suffixes and f.is_file())


def _source(config: ConfigDict, command: str) -> str:
  """The text of a config file."""
  body = pprint.pformat(config.to_dict(), width=96, sort_dicts=False)
  return f"""# The config of an audit: every stage takes it as --config. It was written by
# {command}
from ml_collections import ConfigDict


def get_config(arg=""):
  return ConfigDict(
{"".join(f"    {line}{chr(10)}" for line in body.splitlines())}  )
"""


def _check_images(config: ConfigDict) -> None:
  """Opens the images, so that a mistake in them ends the run at once.

  Where none are fresh, the config says so.
  """
  pool = build(sections.PoolConfig, config.to_dict()["pool"], name="config.pool")

  def opened(split: str) -> pool_lib.Pool:
    return pool_lib.open_pool(
      pathlib.Path(pool.data_dir, pool.dataset),
      split,
      questions=pool.questions or None,
      shares=pool.split_shares(),
      cache=pool_lib.cache_folder(),
    )

  images = opened(pool.images)
  images.image_ids(range(len(images)))
  asked = sum(len(images.questions(i)) for i in range(len(images)))
  print(f"{len(images)} images to ask about, {asked} questions about them", flush=True)
  if pool.fresh:
    try:
      opened(pool.fresh)
    except pool_lib.NoSplit as e:
      print(f"no fresh images, so that the rates of modes are not measured: {e}", flush=True)
      config.update_from_flattened_dict({"pool.fresh": ""})


def _write(workdir: pathlib.Path, config: ConfigDict, argv: Sequence[str]) -> None:
  """Writes the config file; one that says the same is left as it is.

  Raises:
    UserError: results of another config are there.
  """
  path, text = workdir / CONFIG, jsonio.canonical_hash(config.to_dict())
  if path.exists():
    old = overrides.read(str(path), ())
    if jsonio.canonical_hash(old.to_dict()) == text:
      return
    if any(workdir.glob("*/done.json")):
      raise UserError(
        f"{workdir}: begun with another config, whose {_difference(old, config)}; use another"
        f" --workdir, or go on with --config={path}"
      )
  command = shlex.join(["python", "-m", "auditdm_jax", *argv])
  source = _source(config, " ".join(command.split()))
  paths.write_bytes(path, source.encode("utf-8", "backslashreplace"))


def _difference(old: ConfigDict, new: ConfigDict) -> str:
  """Names the first key that two configs disagree about, and its value in the old one."""
  was, now = _leaves(old.to_dict()), _leaves(new.to_dict())
  key = next(k for k in [*was, *now] if was.get(k) != now.get(k))
  return f"config.{key} is {was.get(key)!r:.80}"


def _leaves(section: dict[str, Any], root: str = "") -> dict[str, Any]:
  """Values by dotted key; an empty section is a value."""
  found: dict[str, Any] = {}
  for key, value in section.items():
    found |= (
      _leaves(value, f"{root}{key}.")
      if isinstance(value, dict) and value
      else {f"{root}{key}": value}
    )
  return found
