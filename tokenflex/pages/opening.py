"""The one sentence that a page of scores opens with, from its results alone."""

from dataclasses import dataclass

MARGIN = 0.03
"""A score counts as the same where the whole interval of the difference lies within this distance of 0."""
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Score:
    """What one setting reached.

    Attributes:
        name: of the setting.
        score, tokens: means over questions.
        interval: 95 % interval of the score; None where there is none.
        share: of the visual tokens that there are at the finest level; None where there are none.
    """

    name: str
    score: float
    tokens: float
    interval: Interval
    share: float | None


@dataclass(frozen=True)
class Compared:
    """A setting beside always taking the finest level.

    Attributes:
        share: of the finest level's visual tokens; None where there are none.
        difference: the setting's score less the finest level's.
        interval: 95 % interval of the difference; None where there is none.
    """

    share: float | None
    difference: float
    interval: Interval


def opening(
    shown: Score, compared: Compared | None, *, questions: int, levels: int, routed: bool = True, word: str = "score"
) -> str:
    """The sentence.

    Args:
        shown: the setting that the sentence is about.
        compared: None where the finest level was not run, or is what is shown.
        questions: that were asked.
        levels: that the model has.
        routed: whether the setting chooses; False: it is a fixed level or a scaler's.
        word: what the score is called.
    """
    if levels == 1:
        return f"One level, so there is nothing to choose: {_alone(shown, word, questions)}."
    if compared is None:
        why = "the finest level was not run, so there is no difference to tell"
        return f"{_subject(shown, routed)}: {_alone(shown, word, questions)}; {why}."
    using = "" if shown.name == "router" else f" with {shown.name}"
    text = f"{_kept(compared, word)} {_cost(compared.share)}{using}: {_difference(compared, questions)}."
    return text if routed else f"Without a router: {text[0].lower()}{text[1:]}"


def _subject(shown: Score, routed: bool) -> str:
    return shown.name[:1].upper() + shown.name[1:] if routed else f"Without a router, {shown.name}"


def _alone(shown: Score, word: str, questions: int) -> str:
    interval = f" [{shown.interval[0]:.3f}, {shown.interval[1]:.3f}]" if shown.interval else ""
    share = "" if shown.share is None else f", {100 * shown.share:.0f} % of all"
    return (
        f"{word} {shown.score:.3f}{interval} with {shown.tokens:.1f} visual tokens per question{share} "
        f"({_told(shown.interval, questions)})"
    )


def _kept(compared: Compared, word: str) -> str:
    if compared.interval is None:
        change = "The same" if compared.difference == 0 else "A lower" if compared.difference < 0 else "A higher"
        return f"{change} {word}, how surely is not known,"
    low, high = compared.interval
    if low > 0:
        return f"A higher {word}"
    if high < 0:
        return f"A lower {word}"
    if low >= -MARGIN and high <= MARGIN:
        return f"The same {word}"
    return f"Perhaps the same {word}, too few questions to say,"


def _cost(share: float | None) -> str:
    if share is None:
        return "on questions without images"
    if share < 0.995:
        return f"for {100 * share:.0f} % of the visual tokens"
    return f"for no fewer visual tokens ({100 * share:.0f} %)"


def _difference(compared: Compared, questions: int) -> str:
    interval = f" [{compared.interval[0]:+.3f}, {compared.interval[1]:+.3f}]" if compared.interval else ""
    text = f"difference to always-finest {compared.difference:+.3f}{interval}"
    return f"{text} ({_told(compared.interval, questions)})"


def _told(interval: Interval, questions: int) -> str:
    asked = f"{questions} question{'s' * (questions != 1)}"
    return f"95 % interval, {asked}" if interval else f"no interval, {asked}"
