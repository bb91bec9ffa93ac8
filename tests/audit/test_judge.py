# SPDX-License-Identifier: Apache-2.0
"""The judge's rules, kind by kind: pairs that are the same answer and pairs that are not."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from auditdm_jax.audit.judge import Judge, JudgeConfig, Same
from auditdm_jax.core.config import UserError
from auditdm_jax.scenes import questions, world

# One pair a line, the two answers between bars.
SAME = """
Red|red. ; a red circle|The red circle ; light-blue|light blue ; the|the ; Ａ ｃａｔ|a cat
none|None ; T-shirt|tee shirt ; STOP|"Stop!" ; Nike™|Nike ; U.S.A.|USA ; **red**|red
“red”|red ; red/white|red and white ; red, white and blue|red white blue ; M&M|M and M
isn't|is not ; DON'T WALK|dont walk ; McDonald's|McDonalds ; it's a dog|it is a dog
-5|−5 ; –5|minus 5 ; -5 °C|negative 5 degrees Celsius ; .50|0.5 ; 5|5.0 ; 1,000.50|1000.5
½|1/2 ; ½|0.5 ; 1½|1.5 ; 2 1/2|two and a half ; 10²|10^2 ; 5×5|5 x 5 ; 4 by 6|4x6 ; 2x|2×
≥3|>= 3 ; at least 5|≥5 ; more than 5|>5 ; about 5|≈5 ; ->|→ ; A plus|A+ ; 5 + 3|5 plus 3
3–5|3-5 ; 5 - 3|5-3 ; 3 : 1|3:1 ; No. 5|number 5 ; №5|#5 ; 👍🏽|👍 ; ❤️|❤ ; 5️⃣|5
$5|5 dollars ; $5.00|US$5 ; $5|5 USD ; -$5|minus 5 dollars ; €3|3 euros ; £5|5 pounds
50¢|50 cents ; ₹40|Rs. 40 ; ¥500|500 yen ; $1.5M|1.5 million dollars ; $5|5
5 cm|5 centimetres ; 5cm|5 ; 5 meters|5 ; 2 hours|2 ; 50 percent|50%
5 per cent|5 % ; 5'|5 feet ; 5″|5 inches
6'2"|6 ft 2 in ; 16 oz|16 ounces ; 2 hrs|2 hours ; 10 mins|10 minutes ; 5 lbs|5 pounds
60 mph|60 miles per hour ; 60 km/h|60 kph ; 5 m²|5 square metres ; 1 L|1 liter ; 3 kgs|3 kg
98.6°F|98.6 degrees Fahrenheit ; 45°|45 degrees ; 3-year-old|3 years old ; 3 s|3 seconds
three|3 ; twenty-one|21 ; two hundred and five|205 ; a hundred|100 ; a dozen|12 ; two dozen|24
half a dozen|6 ; 2 million|2,000,000 ; 1.5 million|1500000 ; 3 thousand|3000 ; 5k|5,000
2 bn|2 billion ; half a million|500,000 ; two thirds|2/3 ; three point one four|3.14 ; ten|10
two hundred fifty thousand|250000 ; 2 thousand 5 hundred|2500 ; one|1 ; two dogs|2 dog
1st|first ; 2nd place|second place ; 21st|twenty-first ; 12th|twelfth ; 5th Ave|Fifth Avenue
3:15 PM|3:15 p.m. ; 15:15|3:15 pm ; 03:15|3:15 ; 3 pm|3:00 PM ; noon|12 pm ; midnight|12 am
half past three|3:30 ; quarter to five|4:45 ; ten past three|3:10 ; 3 o'clock|3:00 ; 3.15 pm|15:15
five minutes to six|5:55 ; 8am-6pm|8 am to 6 pm ; 3 in the afternoon|3 pm
(B)|b ; B|B. cat ; option c|C ; Answer: D|d ; A and B|A, B ; the A|A
yes|Yeah! ; No|nope ; yes it is|Yes ; Yes. It is red.|yes ; yes: both|yes ; No, it isn't.|no
no it's not|no ; no, it is not there|No, it is not there. ; Yes, they are.|yes, it is
no, dogs allowed|No! Dogs allowed. ; no one|nobody ; I can't tell|unanswerable ; unknown|not sure
left|on the left ; right|the right-hand side ; upper right|in the top right corner ; top|at the top
in the middle|center ; to the left|left side
café|café ; STRASSE|Straße ; 红色。|红色 ; ٥|5 ; ¿Qué?|qué ; Привет!|привет
couch|sofa ; grey sofas|gray couches ; cell phone|mobile phones ; donut|doughnut
south-east|southeast ; the northwest|north west ; e-mail|email
"""
DIFFERENT = """
red|blue ; |red ; row two|column two ; three|four ; yes|no ; none|no ; none|zero ; 1999|2001
>|< ; →|← ; ↑|↓ ; ✓|✗ ; ♠|♥ ; 😀|😢 ; ●|○ ; ☑|☐ ; +|- ; ×|÷ ; =|≠ ; ?|! ; #|* ; $|£ ; ★★|★
> 5|< 5 ; ≥3|≤3 ; >5|5 ; 5+|5 ; 18+|18 ; +5|5 ; ±5|5 ; ~5|5 ; 5*|5 ; at least 5|5 ; at most 5|5
A+|A ; A+|A- ; B-|B ; C#|C ; C++|C ; C++|C# ; F#|F
-3|3 ; −5|5 ; –5|5 ; minus 5|5 ; .5|5 ; .25|25 ; 5.5|55 ; 3.14|314 ; 1,5|15 ; 1,5|1.5 ; 007|7
1½|11/2 ; ¼|14 ; 10²|102 ; 2³|23 ; 5×5|5 5 ; 5×5|55 ; 7-2|7 2 ; 7-2|72 ; 7-2|7/2 ; 3-5|35
1/2|1 2 ; 1/2|12 ; 1/2|1-2 ; 3:1|31 ; 3:1|1:3 ; 3.1.4|31.4 ; 555-1234|5551234 ; 9/11|9.11
two three|5 ; two, three|23 ; zero five|5 ; $5-$10|$5 $10 ; 5 cm - 10 cm|5 cm 10 cm
£5|$5 ; €5|$5 ; £5|¥5 ; ₹5|$5 ; 5¢|$5 ; ₿5|$5 ; 5‰|5% ; 5%|5° ; 20 °C|20 °F
5'|5" ; 5 cm|5 m ; 5 oz|5 lb ; 5 hours|5 minutes ; 5 mW|5 MW ; 64 GB|64 MB ; 5G|5 ; 3M|3
20C|20 ; 5 g|5 ; 60 mph|60 km/h
2 million|2 billion ; 2 million|2 ; 5k|5 ; a hundred|a thousand ; hundreds|hundred ; dozens|dozen
1st|1 ; 1st|2nd ; first|one ; second|two ; one second|first ; 1970s|1970 ; 70's|70
3:15|3:45 ; 3:15 am|3:15 pm ; 3:15|315 ; 3:15|3.15 ; 3:15|15:15 ; noon|midnight ; 5 am|5
quarter to five|quarter past five ; ten to five|4:50
A|B ; B. cat|C ; A, B|B ; A B|B ; A and B|B ; A or B|B ; A-1|1 ; A1|1 ; 1A|1 ; Type A|Type
vitamin A|vitamin ; Highway A 5|Highway 5 ; Gate A left|Gate left ; Row A Seat 5|Row Seat 5
A vs B|vs B ; A is bigger|is bigger ; Team A|team ; hepatitis A|hepatitis B ; a few|few
No left turn, trucks|No right turn, trucks ; No parking, 8am-6pm|No standing, 8am-6pm
No. 5, Main Street|No. 7, Main Street ; No. 5|no ; No 5|no ; No, 5|No. 5 ; Yes, 2|Yes, 3
No, left|No, right ; yes, no|yes ; yes and no|yes ; No, yes|no ; Yes, but not red|yes
Yes, it is not|yes ; no smoking, no food|no ; No dogs, cats|No cats, dogs ; not red|red
No dogs allowed|No, dogs allowed ; no left turn|No, left turn ; not red, blue|not, red blue
not left, right|left ; isn't red|is red ; none|no one
news|new ; goods|good ; Mars|Mar ; gas|ga ; glasses|glass ; shorts|short ; As|A ; as|a ; his|hi
Williams|William ; glass|gas ; does|doe ; James|Jame ; Paris|Pari ; woods|wood
Mr|Mrs ; so|SOS ; us|uses ; princes|princess
เสือ|เสื้อ ; เก่า|เก้า ; दो|दे ; हाँ|हूँ ; माला|मेला ; நீலம்|நிலம் ; schon|schön ; মা|মি ; 五|六
we're|were ; he'll|hell ; I'll|ill ; left|right ; on the left|on the right ; left hand|left
upper left|lower left ; under the table|on the table ; couch|chair ; telephone|mobile phone
south-east|south-west ; southeast|south
10|1O ; 0|O ; B8|88 ; 2x|2 ; iPhone 4S|iPhone 4 ; unknown|no ; not sure|nothing ; nothing|none
"""


def pairs(block: str) -> list[tuple[str, str]]:
  cells = (cell for line in block.strip("\n").split("\n") for cell in line.split(" ; "))
  return [tuple(cell.strip().split("|")) for cell in cells]


@pytest.mark.parametrize("a,b", pairs(SAME))
def test_same(a, b):
  assert Judge().same(a, b) and Judge().same(b, a)


@pytest.mark.parametrize("a,b", pairs(DIFFERENT))
def test_different(a, b):
  assert Judge().compare(a, b) is Judge().compare(b, a) is Same.DIFFERENT


def test_a_normal_form_is_its_own():
  for text in {t for pair in pairs(SAME) + pairs(DIFFERENT) for t in pair}:
    once = Judge().normalize(text)
    assert Judge().normalize(once) == once and Judge().same(text, once), text


def test_equal_normal_forms_are_the_same_answer():
  """What is asked of a model is asked for the normal forms: they must not hide a difference."""
  for a, b in pairs(DIFFERENT):
    assert Judge().normalize(a) != Judge().normalize(b), (a, b)


PLURALS = """
bus buses, movie movies, cookie cookies, pie pies, tie ties, zombie zombies, size sizes, prize
prizes, maze mazes, quiz quizzes, headache headaches, watch watches, cache caches, axe axes, axis
axes, box boxes, lens lenses, gas gases, vase vases, rose roses, dress dresses, tomato tomatoes,
photo photos, hero heroes, leaf leaves, knife knives, wolf wolves, giraffe giraffes, roof roofs,
man men, policewoman policewomen, grandchild grandchildren, foot feet, tooth teeth, goose geese,
mongoose mongooses, mouse mice, ox oxen, person people, human humans, german germans, taxi taxis,
ski skis, menu menus, cactus cacti, tv tvs, suv suvs, lady ladies, toy toys, monkey monkeys, bush
bushes, church churches, stomach stomachs, dice die
"""


@pytest.mark.parametrize("pair", PLURALS.replace("\n", " ").strip().split(", "))
def test_plurals(pair):
  one, many = pair.split()
  assert Judge().same(one, many) and Judge().same(f"two {many.upper()}", f"2 {one}")
  assert not Judge(JudgeConfig(plurals=False)).same(one, many)


# Spellings of one thing a line; no two lines mean the same.
SPELLINGS = """
5|five|5.0|5.|(5)|"5"|５|the five
-5|−5|–5|minus five|negative 5
15|fifteen|15.00
50|fifty|50.0
0.5|.5|½|1/2|half|a half|0.50
1.5|1½|1 1/2|one and a half|1.50
5.5|5½|five and a half|11/2|11 / 2
1/5|⅕|one fifth|0.2
2/5|two fifths|⅖|.4
5th|fifth|5ᵗʰ
15th|fifteenth
1st|first
5 + 5|5+5|five plus five
5-5|5 - 5|5–5
5:5|5 : 5
5×5|5x5|5 * 5|5 by 5
5²|5^2
5 5|5, 5|five, five|5; 5
55|fifty-five|fifty five
5,5
500|five hundred|5 hundred
5000|5,000|five thousand|5k|5 thousand
5000000|5 million|five million|5,000,000|5 mn
$5|5 dollars|$5.00|5 USD|US$5|five bucks
-$5|$-5|minus 5 dollars
$0.5|$.50
£5|£5.00|5 GBP
€5|5 €|5 euros|EUR 5
¥5|5 yen
5¢|5 cents
$5,000,000|$5M|$5 million|5 million dollars
5%|5 percent|5 per cent|five %
5‰
5 cm|5cm|five centimeters|5 centimetres
5 m|5 meters|5m
5 mm|5 millimeters
5 km|5 kilometres
5 km/h|5 kph|5 kilometers per hour
5 mph|5 miles per hour
5 in|5"|5 inches|5″
5 ft|5'|5 feet|5 foot|5′
5'5"|5 ft 5 in|5 feet 5 inches
5 kg|5 kilos|5 kilograms
5 g|5 grams
5G
5 l|5 L|5 litres
5 s|5 seconds|5 sec|5 secs
5 min|5 minutes|5 mins
5 h|5 hours|5 hrs|5hr
5 am|5:00 AM|5 a.m.|05:00 am|5 in the morning
5 pm|5:00 PM|17:00|5 p.m.
5:00|05:00|5 o'clock
5:05|05:05|five past five
5:15|quarter past five
5:30|half past five
4:45|quarter to five
5°|5 degrees
5 °C|5 degrees Celsius|5℃|5 celsius
5 °F|5 degrees Fahrenheit
>5|> 5|more than 5|greater than five
<5|less than 5|fewer than 5
≥5|>= 5|at least five
≤5|at most 5|up to 5
~5|about 5|≈5|approximately five
±5
5+
+5|plus five
5*
5!5
#5|No. 5|number five|№ 5
A5|A-5|A 5
5A|5 A|5-A
A+|A plus
A-|A−
A|(A)|a.|Option A
A, B|A and B|A B
five dogs|5 dog|the 5 dogs
50s|50's|the 50s
"""


def test_spellings_of_one_thing_are_the_same_and_no_others():
  judge = Judge(JudgeConfig(units_optional=False))
  lines = [line.split("|") for line in SPELLINGS.strip().split("\n")]
  all_of_them = [(i, text) for i, line in enumerate(lines) for text in line]
  for (i, a), (k, b) in itertools.combinations(all_of_them, 2):
    assert judge.same(a, b) == (i == k) and (i != k or judge.same(b, a)), (a, b)


def test_numbers_agree_with_a_writer_of_numbers():
  """Spells numbers by a rule of its own and has the judge read them."""
  small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
  small = f"{small} fifteen sixteen seventeen eighteen nineteen".split()
  tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()

  def spell(n: int) -> str:
    if n < 20:
      return small[n]
    if n < 100:
      return tens[n // 10 - 2] + (f"-{small[n % 10]}" if n % 10 else "")
    for size, word in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
      if n >= size:
        joint = " and " if n % size < 100 else " "
        return f"{spell(n // size)} {word}" + (f"{joint}{spell(n % size)}" if n % size else "")
    raise AssertionError

  seen = {}
  for n in [*range(1300), *range(1995, 2030), 10**6, 4_300_017, 999_999_999, 20_000]:
    text = Judge().normalize(spell(n))
    assert text == str(n) == Judge().normalize(f"{n:,}")
    assert seen.setdefault(text, n) == n


def test_tolerance_never_blurs_small_counts():
  judge = Judge(JudgeConfig(relative_tolerance=0.05))
  assert judge.same("103", "100") and judge.same("2.04", "2.0") and judge.same("$103", "100")
  assert not judge.same("19", "18") and not judge.same("110", "100") and not judge.same("-3", "3")
  assert not Judge().same("103", "100")


def test_units_can_be_required():
  assert not Judge(JudgeConfig(units_optional=False)).same("5 cm", "5")
  assert Judge(JudgeConfig(units_optional=False)).same("5 cm", "5 centimeters")


def test_the_scenes_world_is_judged_as_by_equality():
  """Its answers are words of which no two mean the same, whatever the tables say."""
  named = {f"{color} {shape}" for color in world.COLORS for shape in world.SHAPES}
  answers = sorted({*questions.words(), *named, questions.UNANSWERABLE} - {"a", "an", "the"})
  for a, b in itertools.combinations_with_replacement(answers, 2):
    alike = a == b or {a, b} in ({"object", "objects"}, {"read", "reads"})
    assert Judge().compare(a, b) is (Same.SAME if alike else Same.DIFFERENT), (a, b)


def test_kinds_are_undecided_and_their_members_differ():
  judge = Judge()
  for a, b in (("poodle", "dog"), ("a puppy", "animal"), ("navy blue car", "blue car")):
    assert judge.compare(a, b) is judge.compare(b, a) is Same.UNDECIDED
  assert judge.compare("poodle", "beagle") is Same.DIFFERENT
  assert judge.compare("two poodles", "three dogs") is Same.DIFFERENT


def test_what_follows_yes_counts_where_a_text_is_asked_for():
  judge = Judge()
  assert judge.same("Yes, we are open", "yes", question="Is it open?")
  assert not judge.same("Yes, we are open", "yes", question="What does the sign say?")


def test_a_users_table_is_added(tmp_path):
  path = tmp_path / "more.yaml"
  path.write_text("synonyms: [[rig, lorry], ['7', lucky number]]\nkinds: {tool: [spanner]}\n")
  judge = Judge(JudgeConfig(synonyms=str(path)))
  assert judge.same("two rigs", "2 lorries") and judge.same("sofa", "couch")
  assert judge.same("lucky number", "lucky numbers")
  assert judge.compare("spanner", "tool") is Same.UNDECIDED
  assert not Judge().same("rig", "lorry")


@pytest.mark.parametrize(
  "text,match",
  [
    ("synonym: []", "did you mean 'synonyms'"),
    ("synonyms: [[yes, no]]", "quote numbers"),
    ("synonyms: couch", "list of lists"),
    ("kinds: {dog: poodle}", "kinds.dog should be a list"),
    ("synonyms: [", "no YAML"),
    ("[]", "should have the keys"),
    (None, "no file"),
  ],
)
def test_a_wrong_table_is_named(tmp_path, text, match):
  path = tmp_path / "more.yaml"
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=match) as e:
    Judge(JudgeConfig(synonyms=str(path))).same("a dog", "a cat")
  assert "\n" not in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize(
  "text", ["9" * 5000, "9" * 399, "million " * 49, "(" * 400, "1/" * 200, "'" * 399 + "5", "\ud800"]
)
def test_hostile_answers_are_read(text):
  assert Judge().same(text, text + " ") and not Judge().same(text, "red")
  assert Judge().same(text, text.upper())


@given(st.text(max_size=30), st.text(max_size=30))
@example("\U00010d40", "7")  # A digit of a newer Unicode than Python 3.11's.
def test_order_and_repetition_do_not_count(a, b):
  judge = Judge()
  assert judge.compare(a, b) is judge.compare(b, a)
  assert judge.same(a, a)
