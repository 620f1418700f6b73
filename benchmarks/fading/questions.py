"""What is asked in a conversation of pictures, in the few words that the model knows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fading.pictures import NAMES, Picture
from tokenflex.quickstart.images import INKS, PHOTOS, WASHES

KINDS = {
    "digit by name": "picture G red",
    "digit by looks": "with cat teal red",
    "photograph by name": "picture G photo",
    "name by looks": "which cat teal",
}
"""Kinds of questions, each with an example: the red digit of the picture named G, or of the one with a teal cat; the
photograph that is G's background; and which of all pictures is the teal cat."""
FINE = ("digit by name", "digit by looks")
PHOTO_WORDS, WASH_WORDS, INK_WORDS = list(PHOTOS), list(WASHES), list(INKS)
ABSENT = "absent"
USER = "<user>"
TRIES = 20


@dataclass(frozen=True)
class Asked:
    """A question and its answer, one word.

    Attributes:
        about: number of the picture in the conversation, first 0; None: one that isn't there.
    """

    kind: str
    text: str
    answer: str
    about: int | None

    @property
    def fine(self) -> bool:
        """Whether a detail is asked about."""
        return self.kind in FINE


def words() -> tuple[str, ...]:
    """Every word that questions and answers use."""
    used = ["picture", "with", "photo", "which", ABSENT, *map(str, range(10))]
    return tuple(dict.fromkeys([*used, *NAMES, *INK_WORDS, *PHOTO_WORDS, *WASH_WORDS]))


def looks_in_words(looks: tuple[int, int]) -> str:
    """A photograph and its wash, as questions call them."""
    return f"{PHOTO_WORDS[looks[0]]} {WASH_WORDS[looks[1]]}"


def ask(rng: np.random.Generator, pictures: Sequence[Picture], kind: str, about: int) -> Asked | None:
    """A question of a kind about one of the pictures; None where the kind can't be asked about it.

    Args:
        about: number of the picture.
    """
    picture, looks = pictures[about], looks_in_words(pictures[about].looks)
    ink = list(picture.digits)[int(rng.integers(len(picture.digits)))]
    digit, name, photo = str(picture.digits[ink]), NAMES[picture.name], PHOTO_WORDS[picture.photo]
    if kind == "digit by name":
        return Asked(kind, f"picture {name} {INK_WORDS[ink]}", digit, about)
    if kind == "photograph by name":
        return Asked(kind, f"picture {name} photo", photo, about)
    if [one.looks for one in pictures].count(picture.looks) > 1:
        return None
    if kind == "name by looks":
        return Asked(kind, f"which {looks}", name, about)
    return Asked(kind, f"with {looks} {INK_WORDS[ink]}", digit, about)


def ask_absent(rng: np.random.Generator, pictures: Sequence[Picture], kind: str) -> Asked | None:
    """A question about a picture that isn't there; None where all names are."""
    ink = INK_WORDS[int(rng.integers(len(INK_WORDS)))]
    if kind.endswith("looks"):
        looks = looks_in_words(_other_looks(rng, [one.looks for one in pictures]))
        return Asked(kind, f"which {looks}" if kind.startswith("name") else f"with {looks} {ink}", ABSENT, None)
    free = [name for i, name in enumerate(NAMES) if i not in {one.name for one in pictures}]
    if not free:
        return None
    name = free[int(rng.integers(len(free)))]
    return Asked(kind, f"picture {name} {ink if kind == 'digit by name' else 'photo'}", ABSENT, None)


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

    Where no question of the wanted kinds can be asked, as of two pictures that look alike, it is about a photograph.
    """
    for _ in range(TRIES):
        kind = list(KINDS)[int(rng.choice(len(KINDS), p=shares))]
        if rng.random() < absent:
            asked = ask_absent(rng, pictures, kind)
        else:
            asked = ask(rng, pictures, kind, int(rng.integers(len(pictures))))
        if asked is not None:
            return asked
    picture = pictures[-1]
    about = f"picture {NAMES[picture.name]} photo"
    return Asked("photograph by name", about, PHOTO_WORDS[picture.photo], len(pictures) - 1)
