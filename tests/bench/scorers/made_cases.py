# SPDX-License-Identifier: Apache-2.0
"""Makes answers of every benchmark kind, many of them awkward, in the format of reference cases."""

import random

WORDS = (
  "red blue dog dogs t-shirt yes no Yes none zero two 2 10 the a an cat's dont don't isn't 3.5"
  " 1,000 1,,000 red/blue left,right U.S. u.s. 3. .5 50% $5 5' what? (b) [x] a.m. St. naïve Größe"
  " 12:30"
  " 2020 2019 3 white and on left right people surfing race racing 0 0.0 nan inf 1e3 1_000 12%"
  " 0.12"
).split()
GLUE = (" ", " ", " ", "  ", ", ", " - ", "-", ".", "\n", "\t", "; ")
CATEGORIES = ("existence", "count", "OCR", "code_reasoning", "text_translation")
OPTIONS = ("cat", "dog", "bird", "fish", "a red car", "two", "3.5", "none of these", "Both", "left")
CHOICES = (
  "{L}|{L}.|({L})|{L})|{L}:|{L}. {t}|({L}) {t}|{t}|The answer is {L}|The answer is {t}.|answer: {L}"
  "|**{L}**|{l}|{l}.|{L} or {M}|({L}) or ({M})|It is {t}, not {u}|Option {L} is correct"
  "|The best answer is ({L}).|I choose {L} because {M} is wrong|A {t} is in the image|A|a dog|"
  "|I cannot tell|the animal that is shown here is a {t}|{t} {u}|Not sure, maybe {L}?|{L}{M}"
  "|Let me think. {M} is {u}. So the correct option is {L}|'{L}'|{L}, {t}|Z|{t}.|\n{L}\n"
  "|The correct answer is **{L}**. Here is why: {M} shows {u} and {L} shows {t}"
).split("|")
OPEN = (
  "{n}|so it is {n}|The answer is {n}.|x = {n}|Therefore, final answer {n} m|{n}.0|about {n} units"
  "|it could be {n}\nor {w}|{w}|The result is {w}|{w}.||no idea|-{n}|{n}%|1,{n},000|.{n}|{n}e2"
).split("|")
YES_NO = (
  "Yes|No|yes|no|yes.|No.|Yes, there is|No, there is not|not sure|Know|The answer is yes|y|n| yes "
  "|yes and no|There is no dog|nope|YES||I do not think so. Yes|Yes/No|no,|Maybe"
).split("|")
BOXES = (
  "[{0}, {1}, {2}, {3}]|({0}, {1}, {2}, {3})|[{2}, {3}, {0}, {1}]|the box is [{0},{1},{2},{3}]."
  "|{0} {1} {2} {3}|[{0} {1} {2} {3}]|[]|none|[{0}, {1}, {2}]"
  "|x=[{0},  {1},{2},{3} ] and [0, 0, 1, 1]"
).split("|")


def text(rng: random.Random, words=WORDS, longest: int = 4) -> str:
  out = rng.choice(words)
  for _ in range(rng.randrange(longest)):
    out += rng.choice(GLUE) + rng.choice(words)
  out = rng.choice((out, out, out.lower(), out.capitalize(), f" {out} ", f"{out}."))
  return out if rng.random() > 0.02 else ""


def near(rng: random.Random, answer: str) -> str:
  """The answer, or a text that is close to it."""
  if rng.random() < 0.4:
    return answer
  i = rng.randrange(len(answer) + 1)
  changed = answer[:i] + rng.choice(("", " ", ".", "x", "s", ",", "0")) + answer[i + 1 :]
  return rng.choice((changed, answer.upper(), f" {answer}\n", f"the {answer}", text(rng)))


def votes(rng: random.Random) -> dict:
  answers = [text(rng, longest=2) for _ in range(rng.choice((1, 2, 3, 4)))]
  references = [rng.choice(answers) for _ in range(10)]
  return {"prediction": near(rng, rng.choice(references)), "references": references}


def one(rng: random.Random) -> dict:
  reference = text(rng, longest=2)
  return {"prediction": near(rng, reference), "references": reference}


def several(rng: random.Random) -> dict:
  references = [text(rng) for _ in range(rng.choice((1, 2, 3)))]
  return {"prediction": near(rng, rng.choice(references)), "references": references}


def numbers(rng: random.Random) -> dict:
  value = rng.choice((0, 5, 10, 12.5, 2019, 1000, -3))
  said = value * rng.choice((1, 1.05, 1.06, 0.95, 0.94)) + rng.choice((0, 0, 1))
  form = rng.choice(("{}", "{}%", "${}", " {}", "{} ", "{:,}", "{}.0"))
  if rng.random() < 0.3:
    return one(rng)
  return {"prediction": form.format(said), "references": rng.choice(("{}", "{}%")).format(value)}


def choice(rng: random.Random) -> dict:
  n = rng.choice((2, 3, 4, 4, 4))
  options = rng.sample(OPTIONS, n)
  letters = "ABCD"[:n]
  i, j = rng.randrange(n), rng.randrange(n)
  said = rng.choice(CHOICES).format(
    L=letters[i], M=letters[j], l=letters[i].lower(), t=options[i], u=options[j]
  )
  right = letters[i if rng.random() < 0.7 else j]
  return {"prediction": said, "references": right, "args": {"options": options}}


def rotations(rng: random.Random) -> dict:
  options = rng.sample(OPTIONS, 4)
  right = rng.randrange(4)
  letters = ["ABCD"[(right - k) % 4] for k in range(4)]
  said = []
  for k, letter in enumerate(letters):
    turned = options[k:] + options[:k]
    i = "ABCD".index(letter) if rng.random() < 0.9 else rng.randrange(4)
    easy = ("{L}", "{L}.", "({L})", "{t}", "{L}. {t}", "**{L}**", "The answer is {L}")
    form = rng.choice(easy if rng.random() < 0.85 else CHOICES)
    j = rng.randrange(4)
    said.append(form.format(L="ABCD"[i], M="ABCD"[j], l="abcd"[i], t=turned[i], u=turned[j]))
  return {
    "prediction": said,
    "references": letters,
    "args": {"options_rotation_0": options, "rotation": "left by k"},
  }


def open_answer(rng: random.Random) -> dict:
  number, word = rng.choice((7, 12, 1000, 3.14, 0.5)), rng.choice(("dog", "x", "red car", "1918"))
  said = rng.choice(OPEN).format(n=number, w=word)
  wanted = rng.choice((f"{number}", f"{number:,}", word, "Dog", "7.00"))
  return {"metric": "open", "prediction": said, "references": wanted}


def letter_or_text(rng: random.Random) -> dict:
  if rng.random() < 0.6:
    case = choice(rng)
    return case | {"args": {"options": ["", "", "", ""]}}
  return one(rng)


def yes_no(rng: random.Random) -> dict:
  n = rng.randrange(5, 20)
  return {
    "prediction": [rng.choice(YES_NO) for _ in range(n)],
    "references": [rng.choice(("yes", "no")) for _ in range(n)],
  }


def pairs(rng: random.Random) -> dict:
  said, rows = [], []
  for i in range(rng.randrange(3, 8)):
    category = rng.choice(CATEGORIES)
    said += [rng.choice(YES_NO), rng.choice(YES_NO)]
    rows += [[f"i{i}", category, "Yes"], [f"i{i}", category, "No"]]
  return {"prediction": said, "references": rows}


def box(rng: random.Random) -> dict:
  x1, y1 = rng.random() * 0.6, rng.random() * 0.6
  truth = [x1, y1, x1 + 0.1 + rng.random() * 0.3, y1 + 0.1 + rng.random() * 0.3]
  off = [round(x + rng.choice((0, 0, 0.03, -0.03, 0.2)), 3) for x in truth]
  scale = rng.choice((1, 1, 1, 1000))
  said = rng.choice(BOXES).format(*(int(x * scale) if scale > 1 else x for x in off))
  order = "x1,y1,x2,y2 in [0,1]; image 640x480"
  return {"prediction": said, "references": truth, "args": {"box_order": order}}


def categories(rng: random.Random) -> dict:
  n = rng.randrange(3, 30)
  return {
    "prediction": [rng.randrange(2) for _ in range(n)],
    "references": [rng.choice("abcd") for _ in range(n)],
  }


CAPTION_WORDS = (
  "a the man woman dog's train street sign with on in of to is riding holding two people table food"
  " pizza black-and-white 12 3:30 $5 t-shirt can't isn't it's U.S. st. Mr. p.m. and/or TV (left)"
  " \"stop\" 'go' 1/2 close-up surfboard, field. grass; cannot R&B 50% ladies' snow-covered — café"
).split()


def captions(rng: random.Random) -> dict:
  n = rng.randrange(2, 8)

  def caption(subject: list[str]) -> str:
    words = [rng.choice((rng.choice(subject), rng.choice(CAPTION_WORDS))) for _ in range(9)]
    return " ".join(words[: rng.randrange(2, 10)]).capitalize() + rng.choice((".", "", " .", "!"))

  subjects = [rng.sample(CAPTION_WORDS, 4) for _ in range(n)]
  return {
    "prediction": [caption(x) if rng.random() > 0.02 else "" for x in subjects],
    "references": [[caption(x) for _ in range(5)] for x in subjects],
  }


# Implementation -> (benchmark, metric, maker).
KINDS = {
  "vqa_official": ("vqav2", "vqa_accuracy_loo10", votes),
  "bv_vqav2": ("vqav2", "vqa_accuracy_loo10", votes),
  "lmms_vqav2": ("vqav2", "vqa_accuracy_loo10", votes),
  "vlmk_vqa": ("vqav2", "vqa_accuracy_loo10", votes),
  "lmms_okvqa": ("okvqa", "vqa_accuracy_no_loo", votes),
  "lmms_em": ("gqa", "exact_match", one),
  "vlmk_acc": ("gqa", "exact_match", one),
  "lmms_ai2d": ("ai2d", "mcq_letter", choice),
  "lmms_anls": ("docvqa", "anls", several),
  "vlmk_anls": ("docvqa", "anls", several),
  "bv_vqa_anls": ("docvqa", "anls", several),
  "anls_pypi": ("docvqa", "anls", several),
  "anls_star": ("docvqa", "anls", several),
  "lmms_chartqa": ("chartqa", "relaxed_accuracy", numbers),
  "vlmk_relaxed": ("chartqa", "relaxed_accuracy", numbers),
  "bv_chartqa": ("chartqa", "relaxed_accuracy", numbers),
  "lmms_rec": ("refcoco", "rec_acc@0.5", box),
  "vlmk_refcoco": ("refcoco", "rec_acc@0.5", box),
  "pycocoevalcap": ("cococap", "CIDEr-D", captions),
  "lmms_mmb_static": ("mmbench", "circular_hit", rotations),
  "vlmk_circ": ("mmbench", "circular_hit", rotations),
  "lmms_mmt": ("mmt", "letter", choice),
  "lmms_seed": ("seedbench", "letter", choice),
  "vlmk_mcq": ("seedbench", "letter", choice),
  "lmms_mme": ("mme", "acc+acc_plus", pairs),
  "lmms_mmmu": ("mmmu", "mcq", choice),
  "lmms_mmmu_eval_open": ("mmmu", "open", open_answer),
  "lmms_mcq_extract": ("mmstar", "mcq", choice),
  "lmms_mmstar": ("mmstar", "macro_over_l2", categories),
  "lmms_rwqa": ("realworldqa", "mixed", letter_or_text),
  "lmms_pope": ("pope", "acc/prec/rec/f1/yes", yes_no),
  "vlmk_yorn": ("pope", "acc/prec/rec/f1/yes", yes_no),
}


def cases(reference: str, n: int, *, seed: int = 0) -> list[dict]:
  """Returns n cases of one implementation."""
  benchmark, metric, maker = KINDS[reference]
  rng = random.Random(f"{reference}/{seed}")
  base = {"benchmark": benchmark, "metric": metric, "reference": reference}
  return [base | {"id": f"{reference}-{i}"} | maker(rng) for i in range(n)]
