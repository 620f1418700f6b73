"""Metrics: functions from an answer and its references to a score in [0, 1]."""

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, cast

from tokenflex.errors import ConfigError
from tokenflex.evaluation import vqa

Metric = Callable[[str, Sequence[str]], float]
TOLERANCE = Decimal("0.05")
THRESHOLD = 0.5
_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)%?")
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:\)|\.|:|$)")
_LETTER_AFTER = re.compile(r"(?i:\b(?:answer|option|choice)(?: is)?:?) *\(?([A-Z])\b")


def plain(text: str) -> str:
    """A text without differences of case and white space, and without a full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references, but for case, white space and a full stop at the end."""
    return float(plain(answer) in map(plain, references))


def relaxed(answer: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers may be 5 % off, anything else must match (Masry et al., arXiv 2203.10244).

    ``12 %`` is 0.12; commas within numbers don't count.
    """
    said = _number(answer)

    def fits(reference: str) -> bool:
        wanted = _number(reference)
        if said is None or wanted is None:
            return plain(answer) == plain(reference)
        return abs(said - wanted) <= TOLERANCE * abs(wanted)

    return float(any(map(fits, references)))


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity, threshold 0.5 (Biten et al., arXiv 1905.13648); the best reference.

    The similarity is 1 - edit distance / length of the longer one; where it isn't above 0.5 it counts as 0. Case and
    runs of white space don't matter.

    Raises:
        ConfigError: rapidfuzz isn't installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ConfigError("the metric 'anls' needs rapidfuzz: pip install 'tokenflex[eval]'.") from error
    said, *wanted = (" ".join(text.lower().split()) for text in (answer, *references))
    distance = min(Levenshtein.normalized_distance(said, one) for one in wanted)
    return 1.0 - distance if distance < THRESHOLD else 0.0


def multiple_choice(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is the right choice's letter or its text.

    A letter is found where the answer begins with it (``B``, ``B.``, ``(B)``, ``B: a dog``) or says ``answer is B``,
    ``answer: B`` (or ``option``, ``choice``).

    Args:
        references: the right letter, the right text, or both.
    """
    letters = {reference.strip().upper() for reference in references if re.fullmatch(r"[A-Za-z]", reference.strip())}
    wanted, said = {plain(reference) for reference in references}, plain(answer)
    if said in wanted or said.strip("()\"' ") in wanted:
        return 1.0
    found = _LETTER_FIRST.match(answer.strip()) or _LETTER_AFTER.search(answer)
    return float(found is not None and found.group(1) in letters)


METRICS: dict[str, Metric] = {
    "exact-match": exact_match,
    "vqa": vqa.accuracy,
    "relaxed": relaxed,
    "anls": anls,
    "multiple-choice": multiple_choice,
}


def find(name: str) -> Metric:
    """A metric by its name here, or by ``module:function``.

    Raises:
        ConfigError: there is none, or it can't be imported.
    """
    if ":" not in name:
        if name not in METRICS:
            raise ConfigError(
                f"no metric is called {name!r}; there are {', '.join(METRICS)}, or name a function of your own as "
                "module:function."
            )
        return METRICS[name]
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(f"the metric {name} can't be imported: {type(error).__name__}: {error}.") from error
    if not callable(found):
        raise ConfigError(f"the metric {name} is {found!r}, not a function of (answer, references).")
    return cast(Metric, found)


def identity(name: str) -> str:
    """What stored scores are compared by: the name, and for functions from outside a digest of their source too."""
    if ":" not in name:
        return name
    try:
        source = inspect.getsource(find(name))
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}"


def score(name: str, metric: Metric, answer: str, references: Sequence[str]) -> float:
    """One answer's score.

    Raises:
        ConfigError: the metric gives something else than a number from 0 to 1.
    """
    result = metric(answer, references)
    if not isinstance(result, int | float) or not 0.0 <= result <= 1.0:
        raise ConfigError(
            f"the metric {name} gave {result!r} for {answer!r}; a score must be a number from 0 to 1, higher is better."
        )
    return float(result)


def _number(text: str) -> Decimal | None:
    compact = text.strip().removesuffix(".").replace(" %", "%")
    if not _NUMBER.fullmatch(compact):
        return None
    value = Decimal(compact.rstrip("%").replace(",", ""))
    return value / 100 if compact.endswith("%") else value
