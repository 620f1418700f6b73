"""VQA accuracy, as the VQA challenge describes it (Antol et al., arXiv 1505.00468; visualqa.org/evaluation.html)."""

import re
from collections.abc import Sequence

from tokenflex.errors import DataError

FEWEST = 4
"""Answers per question below which nobody could score 1: leaving one out, three must still agree."""
ARTICLES = {"a", "an", "the"}
NUMBERS = dict(
    zip(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), range(11), strict=True)
)
DIGITS = {"none": "0", **{word: str(number) for word, number in NUMBERS.items()}}
_NEGATED = "are could did does do had has have is might must need ought should was were would ca wo ai sha"
_WITH_HAVE = "could should would might must"
_OTHERS = (
    "i'm i've you're you've you'll they're they've they'll we've he's she's that's that'll it'll what's where's who's "
    "here's there's how's let's o'clock y'all"
)
CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        *(f"{verb}n't" for verb in _NEGATED.split()),
        *(f"{verb}'ve" for verb in _WITH_HAVE.split()),
        *_OTHERS.split(),
    )
}
"""Contractions without their apostrophe. Those that are words of their own (its, were, well, ill) aren't among them."""


def normalise(text: str) -> str:
    """An answer as it is compared.

    Lower case; no full stops except in decimals; numbers up to ten as digits; no articles; contractions with their
    apostrophe; a space for all other punctuation but apostrophes and colons, and nothing for commas between digits.
    """
    lower = text.lower().replace("\u2019", "'")
    plain = re.sub(r"\.(?!\d)", "", lower)
    plain = re.sub(r"(?<=\d),(?=\d)", "", plain)
    plain = re.sub(r"[^\w\s'.:]|_", " ", plain)
    words = (DIGITS.get(word, CONTRACTIONS.get(word, word)) for word in plain.split())
    return " ".join(word for word in words if word not in ARTICLES)


def accuracy(answer: str, references: Sequence[str]) -> float:
    """``min(annotators who said it / 3, 1)``, averaged over all ways of leaving one annotator out.

    Args:
        references: every annotator's answer, with repetitions; ten in the challenge.

    Raises:
        DataError: fewer than four.
    """
    if len(references) < FEWEST:
        raise DataError(
            f"VQA accuracy compares with several people's answers, usually ten; {len(references)} given, at least "
            f"{FEWEST} needed. Use the metric exact-match for single answers."
        )
    said, count = normalise(answer), len(references)
    agree = sum(normalise(reference) == said for reference in references)
    without_one_of_them = agree * min((agree - 1) / 3, 1.0)
    without_another = (count - agree) * min(agree / 3, 1.0)
    return (without_one_of_them + without_another) / count
