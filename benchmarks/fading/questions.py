"""What is asked in a conversation of pictures, in the few words that the model knows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fading.pictures import NAMES, Picture
from tokenflex.quickstart.images import INKS, PHOTOS, WASHES

KINDS = {
    "digit by name": "picture G digit red",
    "digit by looks": "with cat teal digit red",
    "photograph by name": "picture G photo",
    "any": "any cat teal",
}
"""Kinds of questions, each with an example: a detail of the picture named G, a detail of the one with a teal cat, the
photograph that is G's background, and whether any of all pictures is a teal cat."""
FINE = ("digit by name", "digit by looks")
PHOTO_WORDS, WASH_WORDS, INK_WORDS = list(PHOTOS), list(WASHES), list(INKS)
ABSENT, YES, NO = "absent", "yes", "no"
USER, REPLY = "<user>", "<reply>"


@dataclass(frozen=True)
class Asked:
    """A question and its answer, one word.

    Attributes:
        about: number of the picture in the conversation, first 0; None: all of them, or one that isn't there.
    """

    kind: str
    text: str
    answer: str
    about: int | None


def words() -> tuple[str, ...]:
    """Every word that questions and answers use."""
    used = ["picture", "with", "photo", "digit", "any", ABSENT, YES, NO, *map(str, range(10))]
    return tuple(dict.fromkeys([*used, *NAMES, *INK_WORDS, *PHOTO_WORDS, *WASH_WORDS]))


def looks_in_words(looks: tuple[int, int]) -> str:
    """A photograph and its wash, as questions call them."""
    return f"{PHOTO_WORDS[looks[0]]} {WASH_WORDS[looks[1]]}"


def ask(rng: np.random.Generator, pictures: Sequence[Picture], kind: str, about: int) -> Asked | None:
    """A question of a kind about one of the pictures; None where the kind can't be asked about it.

    Args:
        about: number of the picture. Of ``any`` its looks are asked about in half of the questions, and otherwise
            looks that none has.
    """
    picture, all_looks = pictures[about], [one.looks for one in pictures]
    ink = int(rng.integers(len(INK_WORDS)))
    if kind == "digit by name":
        text = f"picture {NAMES[picture.name]} digit {INK_WORDS[ink]}"
        return Asked(kind, text, str(picture.digits[ink]), about)
    if kind == "digit by looks":
        if all_looks.count(picture.looks) > 1:
            return None
        return Asked(
            kind, f"with {looks_in_words(picture.looks)} digit {INK_WORDS[ink]}", str(picture.digits[ink]), about
        )
    if kind == "photograph by name":
        return Asked(kind, f"picture {NAMES[picture.name]} photo", PHOTO_WORDS[picture.photo], about)
    if rng.random() < 0.5:
        return Asked(kind, f"any {looks_in_words(picture.looks)}", YES, None)
    return Asked(kind, f"any {looks_in_words(_other_looks(rng, all_looks))}", NO, None)


def ask_absent(rng: np.random.Generator, pictures: Sequence[Picture], kind: str) -> Asked | None:
    """A question about a picture that isn't there; None where all names are, or the kind is about all pictures."""
    ink = INK_WORDS[int(rng.integers(len(INK_WORDS)))]
    if kind == "digit by looks":
        looks = _other_looks(rng, [one.looks for one in pictures])
        return Asked(kind, f"with {looks_in_words(looks)} digit {ink}", ABSENT, None)
    free = [name for i, name in enumerate(NAMES) if i not in {one.name for one in pictures}]
    if not free or kind == "any":
        return None
    name = free[int(rng.integers(len(free)))]
    return Asked(kind, f"picture {name} " + (f"digit {ink}" if kind == "digit by name" else "photo"), ABSENT, None)


def _other_looks(rng: np.random.Generator, taken: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Looks that none of the pictures has, half of them with a photograph that one of them has."""
    every = [(photo, wash) for photo in range(len(PHOTO_WORDS)) for wash in range(len(WASH_WORDS))]
    free = [looks for looks in every if looks not in taken]
    near = [looks for looks in free if looks[0] in {photo for photo, _ in taken}]
    pool = near if near and rng.random() < 0.5 else free
    return pool[int(rng.integers(len(pool)))]


def any_question(
    rng: np.random.Generator, pictures: Sequence[Picture], shares: Sequence[float], absent: float = 0.0
) -> Asked:
    """A random question about a random picture of the conversation.

    Args:
        shares: of the kinds, in the order of `KINDS`.
        absent: share of questions about pictures that aren't there.
    """
    while True:
        kind = list(KINDS)[int(rng.choice(len(KINDS), p=shares))]
        if rng.random() < absent:
            asked = ask_absent(rng, pictures, kind)
        else:
            asked = ask(rng, pictures, kind, int(rng.integers(len(pictures))))
        if asked is not None:
            return asked
