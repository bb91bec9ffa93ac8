# SPDX-License-Identifier: Apache-2.0
"""English plurals, in both directions.

The judge has two words and asks whether one is the plural of the other. That is certain: the plural
of a word follows from the word. The singular does not (axes: axe or axis), so `singular`, which
counts of terms need, is a guess where no rule decides.
"""

from collections.abc import Iterable
import functools

_IRREGULAR = {
  singular: tuple(plurals.split("/"))
  for singular, plurals in (
    pair.split(":")
    for pair in (
      "man:men woman:women person:people/persons child:children foot:feet tooth:teeth goose:geese"
      " mouse:mice/mouses louse:lice die:dice/dies ox:oxen penny:pennies/pence brother:brothers"
      " leaf:leaves half:halves calf:calves wolf:wolves shelf:shelves self:selves elf:elves"
      " knife:knives wife:wives life:lives loaf:loaves thief:thieves sheaf:sheaves"
      " scarf:scarves/scarfs hoof:hooves/hoofs wharf:wharves/wharfs dwarf:dwarves/dwarfs"
      " handkerchief:handkerchiefs/handkerchieves staff:staffs/staves roof:roofs/rooves"
      " cactus:cacti/cactuses octopus:octopuses/octopi hippopotamus:hippopotamuses/hippopotami"
      " platypus:platypuses fungus:fungi stimulus:stimuli nucleus:nuclei alumnus:alumni"
      " radius:radii syllabus:syllabi/syllabuses focus:foci/focuses bus:buses/busses"
      " gas:gases/gasses lens:lenses iris:irises yes:yeses axis:axes crisis:crises oasis:oases"
      " basis:bases analysis:analyses thesis:theses diagnosis:diagnoses hypothesis:hypotheses"
      " parenthesis:parentheses ellipsis:ellipses bacterium:bacteria aquarium:aquariums/aquaria"
      " stadium:stadiums/stadia medium:mediums/media datum:data stratum:strata"
      " criterion:criteria phenomenon:phenomena index:indexes/indices matrix:matrices/matrixes"
      " vertex:vertices/vertexes appendix:appendices/appendixes vortex:vortices/vortexes"
      " larva:larvae/larvas antenna:antennae/antennas alga:algae vertebra:vertebrae/vertebras"
      " bureau:bureaus/bureaux plateau:plateaus/plateaux gateau:gateaux/gateaus"
      " stomach:stomachs monarch:monarchs epoch:epochs loch:lochs"
      " quiz:quizzes whiz:whizzes fez:fezzes passerby:passersby"
    ).split()
  )
}
# Irregular in compounds too: policeman, grandchild, bookshelf.
_ENDINGS = "woman man person child foot tooth mouse leaf wolf shelf self knife wife life".split()
_NO_COMPOUNDS = frozenset(
  "german roman human shaman caiman talisman ottoman norman superhuman"
  " specimen abdomen omen regimen yemen ramen stamen semen acumen amen".split()
)
# Words in -s that are no plural of the word without it; most are names, or things of another kind.
_NOT_PLURAL = frozenset(
  "as is us has his its was this yes does goes ours hers yours theirs thus plus bus pus gas lens"
  " mens thats lets alas alias chaos corps sans trans logistics moses laos lagos vegas isis asus"
  " luis lukas davies argos news goods mars alms amends brass blues briefs customs dies glasses"
  " spectacles shades shorts tights slacks means odds riches savings species series thanks ups"
  " usps woods works manners physics politics mathematics athletics gymnastics acoustics optics"
  " ethics economics graphics electronics statistics mechanics dynamics aerobics classics antics"
  " olympics christmas texas kansas arkansas illinois paris athens wales cannes brussels naples"
  " dallas las los cyprus honduras james jones williams adams peters stevens rogers roberts"
  " richards edwards andrews phillips matthews daniels samuels simons jacobs myers evans owens"
  " collins hopkins jenkins perkins robbins watkins sims lewis harris davis charles nicholas"
  " thomas lucas marcus venus uranus zeus hermes achilles".split()
)
# Their own plural, or not for counting; nothing to take an s from.
_SINGULAR_S = frozenset(
  "gas bus lens news mars species series means alias atlas bias canvas chaos christmas cosmos"
  " ethos texas kansas pancreas thermos asbestos rhinoceros as has was does goes yes his its"
  " always perhaps whereas besides afterwards james charles thomas wales athens paris".split()
)
_IE = frozenset(
  "cookies movies pies ties lies zombies brownies selfies hoodies smoothies calories"
  " rookies birdies genies pixies neckties magpies eyries prairies aunties hippies"
  " doggies veggies beanies onesies groupies foodies".split()
)
_SINGULARS = {
  plural: one for one, made in _IRREGULAR.items() for plural in made if plural != "dies"
} | {f"{w}s": w for w in "taxi ski menu guru emu bikini kiwi tv cd dvd pc suv".split()}
_COMPOUNDS = [plural for base in _ENDINGS for plural in _IRREGULAR[base] if plural != "lives"]
_SHORT = frozenset("tv cd pc dj mp ad ox ax lp rv".split())  # And no mr, so, if, us.
_ES = ("s", "x", "z", "ch", "sh")


@functools.lru_cache(maxsize=65536)
def plurals(word: str) -> frozenset[str]:
  """Every way to write the plural of a lower-case word; none for words of other alphabets."""
  if not word.isascii() or not word.isalpha() or (len(word) < 3 and word not in _SHORT):
    return frozenset()
  if word in _IRREGULAR:
    return frozenset(_IRREGULAR[word])
  if (base := _ending(word, _ENDINGS)) and word not in _NO_COMPOUNDS:
    return frozenset(word.removesuffix(base) + plural for plural in _IRREGULAR[base])
  if word.endswith("y") and word[-2] not in "aeiou":
    return frozenset((word[:-1] + "ies",))
  if word.endswith(_ES):
    return frozenset((word + "es",))
  if word.endswith("o") and len(word) > 2:
    return frozenset((word + "s", word + "es"))
  return frozenset((word + "s",))


def _ending(word: str, endings: Iterable[str]) -> str:
  """The one of these that a longer word ends in, or ""."""
  return next((e for e in endings if word.endswith(e) and len(word) > len(e) + 1), "")


def is_plural_of(many: str, one: str) -> bool:
  """Whether `many` is the plural of `one`, both in lower case; certain, or False."""
  return many not in _NOT_PLURAL and many in plurals(one)


@functools.lru_cache(maxsize=65536)
def singular(word: str) -> str:
  """The likely singular: `circles` → `circle`, `cookies` → `cookie`; `glass` and `gas` stay."""
  if word in _SINGULARS:
    return _SINGULARS[word]
  if (ending := _ending(word, _COMPOUNDS)) and word not in _NO_COMPOUNDS:
    return word.removesuffix(ending) + _SINGULARS[ending]
  if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
    return word
  if word in _SINGULAR_S:
    return word
  if word.endswith("ies") and len(word) > 4:
    return word[:-1] if word in _IE else word[:-3] + "y"
  if word.endswith(("sses", "shes", "xes", "zzes")):
    return word[:-2]
  if word.endswith("ches"):
    ache = word.endswith("aches") and word[-6:-5] not in ("e", "o")  # Headaches, but beaches.
    return word[:-1] if ache else word[:-2]
  if word.endswith("oes") and word not in ("shoes", "toes", "canoes", "horseshoes", "hoes"):
    return word[:-2]
  return word[:-1]
