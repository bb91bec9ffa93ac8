# SPDX-License-Identifier: Apache-2.0
"""Scores cases with the published implementations, in an environment that has them installed.

Reads one case per line and writes one score per line, null where this machine lacks the
implementation. What is not on PyPI is read from clones: CLONES/VQA, CLONES/VLMEvalKit,
CLONES/big_vision. Of their files only the definitions are run, without their imports.
"""

import ast
import collections
import copy
import functools
import importlib
import json
import math
import os
import pathlib
import re
import string
import sys
import types
import typing

import numpy as np

CLONES = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path("clones")
UNREAD = ""


def definitions(path: pathlib.Path, **names) -> types.SimpleNamespace:
  """Runs the functions, classes and constants of a file, but none of its imports."""
  source = path.read_text(encoding="utf-8").replace("\t", "  ")
  source = re.sub(r"(?m)^(\s*)print (?=[\"'])(.*)$", r"\1pass", source)  # Python 2.
  scope = {
    **dict(np=np, re=re, string=string, math=math, functools=functools, typing=typing, cp=copy),
    **dict(sys=sys, Optional=typing.Optional, List=list, Dict=dict, defaultdict=dict),
    **dict(os=os, collections=collections),
    **names,
  }
  kept = (ast.FunctionDef, ast.ClassDef, ast.Assign)
  for node in ast.parse(source).body:
    if isinstance(node, kept):
      try:
        exec(compile(ast.Module([node], []), str(path), "exec"), scope)
      except (NameError, AttributeError):
        pass  # Needs an import that is not here.
  return types.SimpleNamespace(**scope)


@functools.cache
def vlmk(name: str) -> types.SimpleNamespace:
  root = CLONES / "VLMEvalKit" / "vlmeval"
  misc = definitions(root / "smp" / "misc.py")
  names = dict(
    process_punctuation=misc.process_punctuation,
    istype=lambda value, kind: isinstance(value, kind),
    listinstr=lambda items, text: any(x in text for x in items),
    ImageBaseDataset=object,
  )
  import pandas

  return definitions(root / name, **names, pd=pandas, eval=lambda value: value)


@functools.cache
def big_vision(name: str) -> types.SimpleNamespace:
  import editdistance

  folder = CLONES / "big_vision" / "big_vision/evaluators/proj/paligemma/transfers"
  return definitions(folder / name, editdistance=editdistance)


def vqa_official(case):
  path = CLONES / "VQA" / "PythonEvaluationTools" / "vqaEvaluation" / "vqaEval.py"
  scorer_class = definitions(path).VQAEval

  class Answers:
    def __init__(self, qa):
      self.qa = qa

    def getQuesIds(self):
      return list(self.qa)

  answers = [{"answer": x, "answer_id": i} for i, x in enumerate(case["references"])]
  truth = Answers({0: {"answers": answers, "question_type": "x", "answer_type": "y"}})
  scorer = scorer_class(truth, Answers({0: {"answer": case["prediction"]}}), n=9)
  scorer.updateProgress = lambda progress: None
  scorer.evaluate()
  return scorer.evalQA[0] / 100


def bv_vqav2(case):
  module = big_vision("vqav2.py")
  truth = [module.stripspace_vqav2(x) for x in case["references"]]
  said = module.stripspace_vqav2(case["prediction"])
  if len(set(truth)) > 1:
    said = module.postprocess_vqav2_text(said)
    truth = [module.postprocess_vqav2_text(x) for x in truth]
  matches = np.array([said == x for x in truth])
  return np.mean([np.clip(np.sum(np.delete(matches, i)) / 3, 0, 1) for i in range(10)])


def bv_vqa_anls(case):
  metric = big_vision("vqa.py").anls_metric
  return max(metric(x.lower(), case["prediction"].lower()) for x in case["references"])


def bv_chartqa(case):
  match = big_vision("chartqa.py")._relaxed_match
  return float(match(case["references"].lower(), case["prediction"].lower()))


def vlmk_row(case, method, dataset):
  module = vlmk("dataset/utils/vqa_eval.py")
  truth = case["references"]
  truth = truth if isinstance(truth, list) else [truth]
  row = module.process_line({"answer": truth, "prediction": case["prediction"]}, method=method)
  return float(module.hit_calculate([row], dataset)[0])


def vlmk_letter(said, options):
  module = vlmk("utils/matching_util.py")
  return module.can_infer(said, dict(zip("ABCDEFGH", options)))


def vlmk_mcq(case):
  return float(vlmk_letter(case["prediction"], case["args"]["options"]) == case["references"])


def rotated(case):
  options = case["args"]["options_rotation_0"]
  for k, (said, letter) in enumerate(zip(case["prediction"], case["references"])):
    yield k, said, letter, options[k:] + options[:k]


def vlmk_circ(case):
  return float(all(vlmk_letter(said, o) == x for _, said, x, o in rotated(case)))


def vlmk_refcoco(case):
  module = vlmk("dataset/refcoco.py").RefCOCODataset
  box = module._parse_prediction(case["prediction"])
  box = None if box is None else module._to_absolute(box, 640.0, 480.0)
  truth = np.array(case["references"]) * [640, 480, 640, 480]
  return 0.0 if box is None else float(module._compute_iou(box, truth) >= 0.5)


def vlmk_yorn(case):
  extract = vlmk("dataset/utils/yorn.py").YOrN_Extraction
  said = np.array([extract(x) == "Yes" for x in case["prediction"]])
  labels = [extract(x) for x in case["prediction"]]
  truth = np.array([x == "yes" for x in case["references"]])
  tp, fp, fn = (said & truth).sum(), (said & ~truth).sum(), (~said & truth).sum()
  precision = tp / (tp + fp) if tp + fp else 0
  recall = tp / (tp + fn) if tp + fn else 0
  f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
  hits = [a == b.capitalize() for a, b in zip(labels, case["references"])]
  values = dict(f1=f1, acc=np.mean(hits), precision=precision, recall=recall)
  return {name: 100 * float(x) for name, x in values.items()}


def task(name):
  return importlib.import_module(f"lmms_eval.tasks.{name}")


def lmms_vqav2(case):
  answers = [{"answer": x, "answer_id": i} for i, x in enumerate(case["references"])]
  doc = {"answers": answers, "question_id": 0}
  return task("vqav2.utils").vqav2_process_results(doc, [case["prediction"].strip()])["exact_match"]


def lmms_okvqa(case):
  doc = {"answers": list(case["references"]), "question_id": 0}
  said = [case["prediction"].strip()]
  return task("ok_vqa.utils").ok_vqa_process_results(doc, said)["exact_match"]


def lmms_em(case, said=None):
  from lmms_eval.api.metrics import exact_match_hf_evaluate

  result = exact_match_hf_evaluate(
    predictions=[case["prediction"].strip() if said is None else said],
    references=[case["references"]],
    ignore_case=True,
    ignore_punctuation=True,
  )
  return float(result["exact_match"])


def lmms_ai2d(case):
  made = task("ai2d.utils").MultiChoiceRegexFilter()
  return lmms_em(case, made.apply([[case["prediction"].strip()]], [{}])[0])


def lmms_anls(case):
  from lmms_eval.api.metrics import anls

  return anls(case["references"], [case["prediction"].strip()])["anls"]


def anls_pypi(case):
  from anls import anls_score

  return anls_score(case["prediction"], case["references"])


def anls_star(case):
  from anls_star import anls_score

  return anls_score(tuple(case["references"]), case["prediction"])


def lmms_chartqa(case):
  module = task("chartqa.utils")
  return float(module.relaxed_correctness(case["prediction"].strip(), case["references"]))


def lmms_rec(case):
  module = task("refcoco.utils_rec")
  box = module.parse_float_sequence_within(case["prediction"].strip())
  return float(module.compute_accuracy(case["references"], box, 0.5))


def lmms_mmb_static(case):
  import pandas

  rows = [
    {"index": k * 10**6 + 1, "prediction": said.strip(), "answer": x, **dict(zip("ABCD", o))}
    for k, said, x, o in rotated(case)
  ]
  evaluator = task("mmbench.mmbench_evals").MMBench_Evaluator()
  answers = {row["index"]: row["answer"] for row in rows}
  return float(evaluator.eval_sub_data(pandas.DataFrame(rows), answers, static_only=True))


def without_luck(module):
  """Gives no letter where the code would draw one."""
  module.random = types.SimpleNamespace(choice=lambda choices: UNREAD)


def lmms_mmt(case):
  module = task("mmt.utils")
  without_luck(module)
  options = dict(zip("ABCDEFGHI", case["args"]["options"]))
  doc = {**options, "answer": case["references"]}
  return module.mmt_process_results(doc, [case["prediction"].strip()])["accuracy"]["overall"]


def lmms_seed(case):
  module = task("seedbench.utils")
  doc = {"answer": case["references"], "data_type": "x", "question_id": 0}
  row = module.seed_process_result(doc, [case["prediction"].strip()])["seed_all"]
  return module.seed_aggregation_result([row])


def lmms_mmmu(case):
  module = task("mmmu.utils")
  without_luck(task("_task_utils.mmmu_mcq_utils"))
  index, letters = module.get_multi_choice_info(case["args"]["options"])
  said = module.parse_multi_choice_response(case["prediction"].strip(), letters, index)
  return float(module.eval_multi_choice(case["references"], said))


def lmms_mmmu_eval_open(case):
  module = task("mmmu.utils")
  return float(module.eval_open(case["references"], module.parse_open_response(case["prediction"])))


def lmms_mcq_extract(case):
  extract = task("_task_utils.mcq_extract").extract_mcq_answer
  letters = list("ABCD"[: len(case["args"]["options"])])
  return float(extract(case["prediction"].strip(), choices=letters) == case["references"])


def lmms_mmstar(case):
  rows = [{"score": x, "l2_category": y} for x, y in zip(case["prediction"], case["references"])]
  return task("mmstar.utils").mmstar_aggregate_results(rows)


def lmms_rwqa(case):
  doc = {"answer": case["references"]}
  module = task("realworldqa.utils")
  return module.realworldqa_process_results(doc, [case["prediction"].strip()])["exact_match"]


def lmms_pope(case):
  module = task("pope.utils")
  rows = [
    module.pope_process_results({"answer": y, "question_id": 0}, [x.strip()])["pope_accuracy"]
    for x, y in zip(case["prediction"], case["references"])
  ]
  names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
  return {name: float(vars(module)[f"pope_aggregate_{name}"](rows)) for name in names}


def lmms_mme(case):
  module = task("mme.utils")
  rows = {"mme_perception_score": [], "mme_cognition_score": []}
  for said, (image, category, answer) in zip(case["prediction"], case["references"]):
    doc = {"answer": answer, "category": category, "question_id": image}
    for name, row in module.mme_process_results(doc, [said.strip()]).items():
      rows[name].append(row)
  values = {name: float(module.mme_aggregate_results(x)) for name, x in rows.items()}
  return {name.split("_")[1]: value for name, value in values.items()}


def caption_scores(cases):
  """Runs the Java tokenizer once for all cases, which takes .3 s a time, then CIDEr for each."""
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

  flat = [x for case in cases for x in case["prediction"]]
  flat += [x for case in cases for group in case["references"] for x in group]
  tokens = PTBTokenizer().tokenize({i: [{"caption": x}] for i, x in enumerate(flat)})
  lines = iter(tokens[i][0] for i in range(len(flat)))
  said = [{i: [next(lines)] for i, _ in enumerate(case["prediction"])} for case in cases]
  truth = [
    {i: [next(lines) for _ in group] for i, group in enumerate(case["references"])}
    for case in cases
  ]
  out = []
  for res, gts in zip(said, truth):
    corpus, scores = Cider().compute_score(gts, res)
    out.append({"corpus": float(corpus), "per_image": [float(x) for x in scores]})
  return out


SCORERS = {
  **{f.__name__: f for f in (vqa_official, bv_vqav2, bv_vqa_anls, bv_chartqa, vlmk_mcq, vlmk_circ)},
  **{f.__name__: f for f in (vlmk_refcoco, vlmk_yorn, lmms_vqav2, lmms_okvqa, lmms_em, lmms_ai2d)},
  **{f.__name__: f for f in (lmms_anls, anls_pypi, anls_star, lmms_chartqa, lmms_rec, lmms_mmt)},
  **{f.__name__: f for f in (lmms_mmb_static, lmms_seed, lmms_mmmu, lmms_mmmu_eval_open)},
  **{f.__name__: f for f in (lmms_mcq_extract, lmms_mmstar, lmms_rwqa, lmms_pope, lmms_mme)},
  "vlmk_vqa": lambda case: vlmk_row(case, "vqa_score", "VQAv2"),
  "vlmk_acc": lambda case: vlmk_row(case, "accuracy", "GQA"),
  "vlmk_anls": lambda case: vlmk_row(case, "anls", "DocVQA"),
  "vlmk_relaxed": lambda case: vlmk_row(case, "relaxed_accuracy", "ChartQA"),
}


def main():
  by_id = collections.defaultdict(list)
  for line in sys.stdin:
    case = json.loads(line)
    by_id[case["reference"]].append(case)
  output, sys.stdout = sys.stdout, sys.stderr  # The references print.
  for reference, cases in by_id.items():
    try:
      if reference == "pycocoevalcap":
        scores = caption_scores(cases)
      else:
        scores = [SCORERS[reference](copy.deepcopy(case)) for case in cases]
    except (ImportError, FileNotFoundError) as error:
      print(f"{reference}: {error!r}", file=sys.stderr)
      scores = [None] * len(cases)
    for case, score in zip(cases, scores):
      score = score if score is None or isinstance(score, dict) else float(score)
      print(json.dumps([case["reference"], case["id"], score]), file=output)


if __name__ == "__main__":
  main()
