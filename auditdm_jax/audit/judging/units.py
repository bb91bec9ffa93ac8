# SPDX-License-Identifier: Apache-2.0
"""Units and currencies: one name for each, and always after its number.

    5 centimetres → 5 cm     $5, 5 dollars, 5 USD → 5 $     6'2" → 6 ft 2 in     -5 °C → -5 °c

A word is a unit only after a number. Letters that are a unit in one case only (5 g, but 5G and
seat 5 G) are looked up as they were written.
"""

from collections.abc import Sequence

from auditdm_jax.audit.judging.numbers import MONEY
from auditdm_jax.audit.judging.tokens import Token

_SPELLED = """
%: % percent pct per_cent
‰: ‰ per_mille
cm: cm cms centimeter centimetre
mm: mm millimeter millimetre
m: meter metre
km: km kms kilometer kilometre
in: in inch inches
ft: ft foot feet
yd: yd yard
mi: mi mile
kg: kg kgs kilo kilogram kilogramme
g: gr gram gramme
mg: mg milligram
lb: lb lbs
pound: pound
oz: oz ounce
fl_oz: fl_oz fluid_ounce
ton: ton
tonne: tonne metric_ton
l: ltr liter litre
ml: ml milliliter millilitre
cl: cl centiliter centilitre
gal: gal gallon
qt: qt quart
pt: pint
s: sec second
ms: ms millisecond
min: min minute
h: hr hour
day: day
week: wk week
month: month mo
year: yr year
mph: mph mi/h mile_per_hour
km/h: km/h kmh kph kmph km_per_hour kilometer_per_hour kilometre_per_hour
m/s: m/s meter_per_second metre_per_second
kcal: kcal kilocalorie
cal: calorie
kj: kj kilojoule
kw: kw kilowatt
w: watt
v: volt
hp: hp horsepower
hz: hz hertz
khz: khz kilohertz
mhz: mhz megahertz
ghz: ghz gigahertz
kb: kb kilobyte
mb: mb megabyte
gb: gb gigabyte
tb: tb terabyte
m^2: m^2 sq_m sqm square_meter square_metre
ft^2: ft^2 sq_ft square_foot square_feet
km^2: km^2 sq_km square_kilometer square_kilometre
m^3: m^3 cubic_meter cubic_metre
°: ° degree deg
°c: °_c °_celsius degree_celsius degree_c degree_centigrade celsius centigrade deg_c
°f: °_f °_fahrenheit degree_fahrenheit degree_f fahrenheit deg_f
$: $ dollar usd us_$ us_dollar buck
€: € euro eur
£: £ gbp quid pound_sterling
¢: ¢ cent
¥: ¥ yen jpy
yuan: yuan rmb cny renminbi
₹: ₹ rupee inr rs
₩: ₩ won krw
₽: ₽ ruble rouble rub
₺: ₺ lira
₿: ₿ bitcoin btc
chf: chf swiss_franc
a$: a_$ aud australian_dollar
c$: c_$ cad canadian_dollar
hk$: hk_$ hkd
nz$: nz_$ nzd
s$: s_$ sgd
r$: r_$ brl
"""
_MARKS = {"'": "ft", '"': "in"}
_LETTERS = {letter: letter for letter in "m g s h l w mW MW mV MV".split()}
_LETTERS |= {"L": "l", "W": "w", "V": "v", "Mb": "Mbit", "Gb": "Gbit"}
_NO_PLURAL = frozenset("% cm mm km in inches ft feet mi kg mph kmh kph ° $ € £ ¢ ¥".split())
# Words that are units before their number too.
_BEFORE = frozenset("$ € £ ¢ ¥ ₹ ₩ ₽ ₺ ₿ chf a$ c$ hk$ nz$ s$ r$".split())
_CODES = frozenset("usd eur gbp jpy inr rs krw rub chf aud cad hkd nzd sgd brl btc".split())
_EITHER = {frozenset(("pound", "lb")), frozenset(("pound", "£"))}
_DEGREES = {frozenset(("°", "°c")), frozenset(("°", "°f"))}


def _table() -> dict[tuple[str, ...], str]:
  """(words) → unit, plurals included."""
  table = {}
  for line in _SPELLED.split("\n")[1:-1]:
    unit, *names = line.replace(":", "", 1).split()
    unit = unit.replace("_", " ")
    for name in names:
      words = name.split("_")
      table[tuple(words)] = unit
      if words[0] not in _NO_PLURAL:
        table[f"{words[0]}s", *words[1:]] = unit
      if len(words) > 1 and words[-1] not in _NO_PLURAL:
        table[*words[:-1], f"{words[-1]}s"] = unit
  return table


_UNITS = _table()
_LONGEST = max(map(len, _UNITS))


def same_unit(a: str, b: str) -> bool:
  """Whether two units are one; a pound is money or weight."""
  return a == b or frozenset((a, b)) in _EITHER


def near_unit(a: str, b: str) -> bool:
  """`same_unit`, or degrees of which only one says whose."""
  return same_unit(a, b) or frozenset((a, b)) in _DEGREES


def read_units(tokens: Sequence[Token]) -> list[Token]:
  """Units become unit tokens, each after its number."""
  out: list[Token] = []
  i = 0
  while i < len(tokens):
    if out and _is_decade(out[-1], tokens[i]):
      mark = "" if out[-1].text.endswith("0") else "'"
      out[-1] = out[-1]._replace(kind="word", text=f"{out[-1].text}{mark}s", value=None)
      i += 1
      continue
    if out and out[-1].kind in ("number", "fraction"):
      found = _unit(tokens, i)
      before = None
    else:
      found, before = None, _prefix(tokens, i)
    if before is not None:
      unit, i = before
      out += [tokens[i], unit._replace(cut="", glued=False)]
      i += 1
      if (again := _unit(tokens, i)) and again[0].text == unit.text:  # $5 USD
        i = again[1]
    elif found is not None:
      unit, i = found
      out.append(unit)
    else:
      out.append(tokens[i])
      i += 1
  return out


def _is_decade(number: Token, after: Token) -> bool:
  """1970s, 70's; 5's is no decade, but no five seconds either."""
  if number.kind != "number" or after.text != "s":
    return False
  return after.cut == "'" or (after.glued and number.text.endswith("0"))


def _unit(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
  """The unit that begins at token i, after a number, and the place after it."""
  if i >= len(tokens) or tokens[i].cut not in ("", "-"):
    return None
  first = tokens[i]
  if first.kind == "sign" and first.text in _MARKS:
    return first._replace(kind="unit", text=_MARKS[first.text]), i + 1
  if first.kind == "ordinal" and first.raw.lower() == "second":
    return first._replace(kind="unit", text="s"), i + 1
  if first.raw in _LETTERS:
    return first._replace(kind="unit", text=_LETTERS[first.raw]), i + 1
  for length in range(min(_LONGEST, len(tokens) - i), 0, -1):
    words = tokens[i : i + length]
    unit = _UNITS.get(tuple(t.text for t in words))
    if unit is None or any(t.cut not in ("", "-", ".") for t in words[1:]):
      continue
    if unit == "in" and first.raw == "in" and _word_follows(tokens, i + 1):  # 5 in a row
      return None
    return first._replace(kind="unit", text=unit), i + length
  return None


def _word_follows(tokens: Sequence[Token], i: int) -> bool:
  return i < len(tokens) and tokens[i].kind == "word" and tokens[i].text not in ("x", "by")


def _prefix(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
  """A currency before its number, `$5` or `US$ 5`, and the place of that number."""
  for length in (2, 1):
    end = i + length
    if end >= len(tokens) or tokens[end].kind != "number" or tokens[end].cut not in ("", "."):
      continue
    words = tuple(t.text for t in tokens[i:end])
    unit = _UNITS.get(words)
    if unit in _BEFORE and (words[-1] in MONEY or words[0] in _CODES):
      return tokens[i]._replace(kind="unit", text=unit), end
  return None
