"""The answer that prose states: behind "answer is" or "Answer:", else in the last sentence with a value.

A sentence may hold several values ("6 lemons cost $3"). Then the one counts that is set in bold or in LaTeX, that
follows an equals sign, or that an equation shortly before ended in; without any of these the last one."""

# ruff: noqa: RUF001  -- other minus and multiplication signs are meant
import re

from mixdistill.traces.grade_equal import NUMERALS

SENTENCE_END = re.compile(r"(?<=[.!?:])(?<!\d!)(?<!\bM[rs]\.)(?<!\bMrs\.)(?<!\b[DS][rt]\.)[*\"'”)\]]*\s+|\n+")
PHRASE = re.compile(
    r"(?:(?<=the correct )|(?<!correct )(?<!wrong ))\banswer\b[*_\s]*(?:is|was|would be|equals|:)|\banswer[*_]*\s*\n",
    re.I,
)
LATEX = re.compile(  # a dollar before a space, after one or before a digit is money, not the edge of a formula
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(?!\s)([^$\n]+?)(?<![\\\s])\$(?!\d)", re.S
)
BOLD = re.compile(r"\*\*(.+?)\*\*", re.S)
WORDS = re.compile(r"(?<![\\{])(?<![^\W\d_])[^\W\d_]{3,}")  # prose, not a command
SHORT_WORDS = re.compile(WORDS.pattern.replace("3", "2"))
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}")
CHOICE = re.compile(r"(?<![\w)])\(([A-J])\)(?![\w(])")
RELATION = re.compile(r"=|≈|\\approx")
ESCAPED_LINE = re.compile(r"\\n(?![a-z])")
DIGIT = re.compile(r"[\d√π½¼¾⅓⅔]")

TERM = r"""(?:
      \d+[ ]\d+/\d+(?!\d)
    | (?:\d{1,3}(?:[, \u202f\u00a0]\d{3})+(?![\d,]) | \d+ | (?=\.\d)) (?:\.\d+)?
      (?!\d*(?:st|nd|rd|th)\b) (?:√\(?\d+\)?|π|i\b|!)?
    | √\(?\d+\)? | π | [½¼¾⅓⅔]
    )"""
INNER = r"[^{}()\[\]a-zA-Z=]{0,60}"
VALUE = rf"""(?:
      [{{(\[] {INNER}\d{INNER},{INNER} [}})\]]   # a set, tuple or interval
    | (?:(?<![\w.)}}\]])[-−–])? (?:(?:\bUS)?\\?[$€£]\s?)? [-−]?
      {TERM} (?:\s*[-+−–·×/]\s*{TERM}(?![\d.,]*\s*=))* (?:\s?\\?%)?
    )"""
VALUES = re.compile(VALUE, re.X)
LETTER = re.compile(r"[^\W\d_]")
NUMERAL = re.compile(rf"\b(?:{'|'.join(NUMERALS)})\b(?![-‑]\w)", re.I)  # not "an eight-hour day"
CONSEQUENCE = re.compile(r"(?:\*\*)?(?:therefore|thus|hence|so|consequently|this means(?: that)?)\b[, ]*(?=\w)", re.I)
RESULT = re.compile(rf"[=≈]\s*(?:\*\*|\\\(|\$)?({VALUE})", re.X)
REMARK = re.compile(r"\([^()]*\)")
NO_MARKS = str.maketrans("", "", "US\\$€£%, \u00a0\u202f")

TAIL = 2000  # characters in which the conclusion and the equations before it stand
MARKS = " \t.,;*_`\"'"
NEAR = 400  # characters before the end
MAX_LINE = 200
MAX_WORDS = 3
SENTENCE_WORDS = 3  # so many words make a marked answer a sentence that states it


def phrase(text: str) -> str:
    """What follows the last "answer is" or "Answer:" that something follows, if it stands near the end: else it is the
    heading of the whole answer, or a thought on the way."""
    for match in reversed(list(PHRASE.finditer(text, max(0, len(text) - NEAR)))):
        line = text[match.end() : match.end() + MAX_LINE].lstrip(" \t\n*:_\"'").partition("\n")[0]
        sentence = SENTENCE_END.split(line, maxsplit=1)[0]
        said = sentence.strip(MARKS) if not match.group()[-1].isalpha() else _few_words(sentence)
        if answer := _value(sentence, text[: match.start()]) or said:
            return answer
    return ""


def conclusion(text: str) -> str:
    """The value of the last sentence that has one."""
    tail = ESCAPED_LINE.sub("\n", text[-TAIL:])
    place = len(tail)
    for sentence in reversed(SENTENCE_END.split(tail)):
        place = tail.rfind(sentence, 0, place)
        if answer := _value(sentence, tail[:place]) or _consequence(sentence):
            return answer
    return ""


def stated(answer: str) -> str:
    """The value in a marked answer that is a whole sentence, the result of one that is a calculation; any other answer
    as it is."""
    left, equals, right = answer.rpartition("=")
    if equals and DIGIT.search(left) and not LETTER.search(left):
        return right.strip()
    words = len(WORDS.findall(TEXT.sub("", answer)))
    is_sentence = words >= SENTENCE_WORDS or (words and "=" in answer)
    return (_value(answer, "") if is_sentence else "") or answer


def _consequence(sentence: str) -> str:
    """What a sentence without a value says, if it is said to follow from the rest."""
    found = CONSEQUENCE.match(sentence)
    return sentence[found.end() :].strip(MARKS) if found else ""


def _few_words(sentence: str) -> str:
    words = sentence.strip(MARKS)
    return words if words[:1].isalpha() and words[-1] != ":" and len(words.split()) <= MAX_WORDS else ""


def _value(sentence: str, before: str) -> str:
    """The value that a sentence states, "" if none; `before` is the text in front of it."""
    if choice := CHOICE.findall(sentence):
        return f"({choice[-1]})"
    bold = BOLD.findall(sentence)
    if bold and not DIGIT.search("".join(bold)) and not BOLD.match(sentence) and (name := _few_words(bold[-1])):
        return name
    sentence = "; ".join(part for part in bold if DIGIT.search(part)) or sentence
    if formula := _formula(sentence):
        return formula
    right = RELATION.split(sentence)[-1]
    if DIGIT.search(right) and not SHORT_WORDS.search(TEXT.sub("", right)):
        return right.strip(MARKS)
    if right != sentence and (found := VALUES.search(right)):
        return found.group().strip()
    values = VALUES.findall(REMARK.sub("", sentence)) or VALUES.findall(sentence) or NUMERAL.findall(sentence)
    return _chosen(values, before)


def _chosen(values: list[str], before: str) -> str:
    """The one of several values in which the latest of the equations before ended, else the last; "" of none."""
    known = {_bare(value): value.strip() for value in values}
    results = (_bare(result) for result in reversed(RESULT.findall(before[-TAIL:])))
    return next((known[result] for result in results if result in known), next(reversed(known.values()), ""))


def _formula(sentence: str) -> str:
    """The right side of the last LaTeX formula that is more than a name."""
    parts = [part.strip() for groups in LATEX.findall(sentence) for part in groups if part]
    formulas = [part for part in parts if re.search(r"\w.*\w|\d", part, re.S) and not WORDS.search(TEXT.sub("", part))]
    return RELATION.split(formulas[-1])[-1].strip(MARKS) if formulas else ""


def _bare(value: str) -> str:
    digits = value.translate(NO_MARKS)
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
