"""Whether an answer equals a reference, as far as plain rules tell: numbers, choice letters, words, JSON values."""

# ruff: noqa: RUF001  -- other minus, multiplication and quotation signs are meant
import json
import re
from fractions import Fraction
from typing import Any

SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–‐", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f~", " "),
        **{"π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "∞": r"\infty ", "°": r"^\circ ", "²": "^2"},
        **{
            "³": "^3",
            "½": r" \frac{1}{2}",
            "¼": r" \frac{1}{4}",
            "¾": r" \frac{3}{4}",
            "⅓": r" \frac{1}{3}",
            "⅔": r" \frac{2}{3}",
        },
    }
)
ROOT = re.compile(r"√\s*(?:\(([^()]+)\)|(\d+|\w))")
SPACE = re.compile(r"\\[,;:! ]|\\quad(?![a-zA-Z])")
WRAPPED = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|\$|%|\(|\)|\[|\])(?![a-zA-Z])|\bUS(?=\\?\$)|[$€£%]|\*\*|\^\s*\{?\\circ\s*\}?(?:\s*[CF]\b)?"
)
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,| )(?=\d{3}(?!\d))")
VARIABLE = re.compile(r"^\\?[a-zA-Z](?:_\{?\w+\}?)?(?:\([^()=]*\))?\s*=\s*")
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
NUMBER = re.compile(r"([+-]?)\s*(?:(\d+) (\d+)/(0*[1-9]\d*)|(\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*(0*[1-9]\d*))?)")
UNIT = re.compile(
    r"(?:\s*(hundred|thousand|million|billion)\b)?(?:\s+[a-zA-Z][a-zA-Z./'’-]+|(?<=\d)[a-zA-Z]{2,}[a-zA-Z./'’-]*)*[\s.]*"
)
NUMERALS = {  # "one" is mostly a pronoun
    **{"zero": 0, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50},
}
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
HOUR = re.compile(r"^(\d{1,2}):00(?: ?[ap]\.?m\.?)?$", re.I)  # 2:00 pm is 2
BASE = re.compile(r"(-?\d+)(?:_\{?(\w+)\}?)?")
LETTER = re.compile(r"(?:(?:option|choice|answer)\s*)?[(\[]?([A-J])(?:[)\].:,]+(?:\s.*)?)?", re.S | re.I)
BARE_LETTER = re.compile(r"[(\[]?([A-J])[)\].]?")
MATHEMATICS = re.compile(r"\d|\\[a-zA-Z]|\^")
NEGATION = {"not", "no", "never", "neither", "nor", "or"}
TOLERANCE = Fraction(1, 10**6)  # relative: 0.3333333 is a third
MAX_DIGITS = 400  # in a number: more come only from a generator that ran away


def equal(answer: str, reference: str) -> bool | None:
    """True or False where plain rules decide; None where it takes algebra."""
    mine, its = plain(answer), plain(reference)
    if mine == its:
        return True
    for verdict in (_letters(mine, its), _based(mine, its), _json(answer, reference)):
        if verdict is not None:
            return verdict
    one, other = value(mine), value(its)
    if one is not None and other is not None:
        return _close(one, other) or _per_cent(answer, one, reference, other)
    if not MATHEMATICS.search(mine) or not MATHEMATICS.search(its):
        return _named(_words(mine), _words(its))
    return None


def plain(text: str) -> str:
    """The text in ASCII LaTeX without what does not change its value: wrappers, spacing, currency, per cent and degree
    signs, thousands separators, "x =" before it, a full stop after it."""
    text = ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text.translate(SYMBOLS))
    text = SPACE.sub(lambda m: "" if m.group() in (r"\!", r"\,") else " ", text)
    text = WRAPPED.sub(r" \1", WRAPPED.sub(r" \1", text))
    text = THOUSANDS.sub("", DROPPED.sub("", text))
    return VARIABLE.sub("", " ".join(text.split()).strip("\"'`_ ")).strip().rstrip(".,;").strip()


def value(text: str) -> Fraction | None:
    """The number that a plain text is, words of units after it allowed; None if it is not one number."""
    if text.lower() in NUMERALS:
        return Fraction(NUMERALS[text.lower()])
    text = HOUR.sub(r"\1", text)
    text = FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", text).strip("() ")
    match = NUMBER.match(text)
    unit = match and UNIT.fullmatch(text, match.end())
    if not match or not unit or match.end() > MAX_DIGITS:
        return None
    sign, whole, above, below, decimal, divisor = match.groups()
    if whole:
        number = int(whole) + Fraction(int(above), int(below))
    else:
        number = Fraction(decimal) / int(divisor or 1)
    return (-number if sign == "-" else number) * SCALE.get(unit[1], 1)


def _close(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= TOLERANCE * abs(other)


def _per_cent(answer: str, one: Fraction, reference: str, other: Fraction) -> bool:
    """Whether 50% stands against 0.5."""
    if ("%" in answer) == ("%" in reference):
        return False
    return _close(one, 100 * other) if "%" in answer else _close(100 * one, other)


def _letters(answer: str, reference: str) -> bool | None:
    """For a reference that is a choice letter: whether the answer is that letter, with or without the choice's text."""
    right = BARE_LETTER.fullmatch(reference)
    if not right:
        return None
    chosen = LETTER.fullmatch(answer)
    return bool(chosen) and chosen[1].upper() == right[1]


def _based(answer: str, reference: str) -> bool | None:
    """For digits with a base ("1101_2"): the digits decide, and the base where both give one."""
    one, other = BASE.fullmatch(answer), BASE.fullmatch(reference)
    if not one or not other or not (one[2] or other[2]):
        return None
    return one[1] == other[1] and (one[2] is None or other[2] is None or one[2] == other[2])


def _json(answer: str, reference: str) -> bool | None:
    """For a reference that is a JSON list or object: equality of all its values."""
    if not reference.lstrip().startswith(("[", "{")):
        return None
    try:
        return _same(json.loads(answer), json.loads(reference))
    except (ValueError, RecursionError):
        return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool | None) or isinstance(other, bool | None):
        return one is other
    return not isinstance(one, dict | list) and not isinstance(other, dict | list) and bool(equal(str(one), str(other)))


def _named(answer: list[str], reference: list[str]) -> bool:
    """Whether words that are the answer stand at the beginning or the end of what was said: "Ann earns the most"."""
    size = len(reference)
    return size > 0 and reference in (answer[:size], answer[-size:]) and not NEGATION & set(answer)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.casefold()) if word not in ("the", "a", "an")]
