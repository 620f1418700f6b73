"""How the language model learns to talk about several pictures, each at a level of its own.

A plain loop: the tower is frozen, so the pictures' tokens are computed once, pooled to every level once, and put
between the words here. `tokenflex.wrap` puts the same tokens at the same positions; a test compares them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from benchmarks.fading.pictures import NAMES, SIDE, Picture
from benchmarks.fading.questions import KINDS, USER, any_question
from tokenflex.contracts import Grid
from tokenflex.ops.pooling import PYRAMID, pool_windows
from tokenflex.quickstart.host import IMAGE, SPECIAL

KEPT = [SIDE * SIDE // (down * across) for down, across in PYRAMID]
"""Tokens of every level."""
FIRST = [sum(KEPT[:level]) for level in range(len(KEPT))]
"""Where a level's tokens begin among those of all levels."""
FINEST = len(KEPT) - 1
IGNORED = -100


@dataclass(frozen=True)
class Practice:
    """A part of the training.

    Attributes:
        pictures: least and most pictures of a conversation.
        mixed: share of rows whose pictures have levels of their own; the others' are all at the finest.
        steps: optimizer steps.
        rows: conversations per step.
        questions: behind the last picture of a conversation.
        rate: learning rate.
        last: whether the rate falls to 0.
        shares: of the kinds of questions, in the order of `KINDS`.
    """

    pictures: tuple[int, int]
    mixed: float
    steps: int
    rows: int
    questions: int
    rate: float
    last: bool = False
    shares: tuple[float, ...] = (0.4, 0.3, 0.15, 0.15)


class Pyramids:
    """Pictures and their tokens at all levels.

    Args:
        pictures: with names in turn, so that every name is there.
        tokens: ``(pictures, cells, width)``.
    """

    def __init__(self, pictures: Sequence[Picture], tokens: Tensor) -> None:
        self.pictures = pictures
        grid = Grid(SIDE, SIDE)
        self.table = torch.cat([pool_windows(tokens, grid, window) for window in PYRAMID], dim=1)
        self.by_name = [[i for i, one in enumerate(pictures) if one.name == name] for name in range(len(NAMES))]

    def pick(self, rng: np.random.Generator, count: int) -> list[int]:
        """Numbers of ``count`` pictures of different names, in random order."""
        names = rng.permutation(len(NAMES))[:count]
        return [self.by_name[name][int(rng.integers(len(self.by_name[name])))] for name in names]


def offsets() -> Tensor:
    """Positions of every level's tokens behind the picture's first, ``(3, tokens of all levels)``: time, down, across.

    A token of a coarser level stands in the middle of its window.
    """
    plane = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).flatten(0, 1)
    places = [pool_windows(plane[None].float(), Grid(SIDE, SIDE), window)[0] for window in PYRAMID]
    return F.pad(torch.cat(places).T, (0, 0, 1, 0))


class Writer:
    """Writes conversations as the tensors that the language model takes.

    Args:
        tokenizer: of the host.
        pyramids: the pictures they are about.
    """

    def __init__(self, tokenizer: Any, pyramids: Pyramids) -> None:
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.pyramids, self.offsets = pyramids, offsets()
        self.pad = self.ids[SPECIAL["pad_token"]]

    def row(self, said: Sequence[tuple[int | None, int, str, str]]) -> dict[str, Tensor]:
        """One conversation.

        Args:
            said: per turn (number of the picture it brings, or None; that picture's level; question; answer).
        """
        ids, places, sources, labels, at = list[int](), list[Tensor](), list[int](), list[int](), 0
        for picture, level, question, answer in said:
            words = [self.ids[USER]]
            if picture is not None:
                self._words(words, at, ids, places, sources, labels)
                at, kept = at + 1, slice(FIRST[level], FIRST[level] + KEPT[level])
                ids += [self.ids[IMAGE]] * KEPT[level]
                places.append(self.offsets[:, kept] + at)
                sources += [picture * sum(KEPT) + slot for slot in range(kept.start, kept.stop)]
                labels += [IGNORED] * KEPT[level]
                at, words = at + SIDE, []
            words += [self.ids[word] for word in (*question.split(), answer, SPECIAL["eos_token"])]
            self._words(words, at, ids, places, sources, labels)
            labels[-2] = ids[-2]
            at += len(words)
        return {
            "ids": torch.tensor(ids),
            "places": torch.cat(places, dim=1),
            "sources": torch.tensor(sources),
            "labels": torch.tensor(labels),
        }

    @staticmethod
    def _words(
        words: list[int], at: int, ids: list[int], places: list[Tensor], sources: list[int], labels: list[int]
    ) -> None:
        ids += words
        places.append(torch.arange(at, at + len(words), dtype=torch.float32).expand(3, -1))
        sources += [-1] * len(words)
        labels += [IGNORED] * len(words)

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows padded on the right, which what stands before it doesn't see."""
        length = max(len(row["ids"]) for row in rows)
        fill = {"ids": self.pad, "places": 0, "sources": -1, "labels": IGNORED}
        return {
            name: torch.stack([F.pad(row[name], (0, length - row[name].shape[-1]), value=empty) for row in rows])
            for name, empty in fill.items()
        }


def loss_and_right(host: Any, pyramids: Pyramids, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy of the answers, whether each is right)."""
    embedded = host.get_input_embeddings()(batch["ids"])
    visual = batch["sources"] >= 0
    embedded = embedded.masked_scatter(visual[..., None], pyramids.table.flatten(0, 1)[batch["sources"][visual]])
    hidden = host.model.language_model(
        inputs_embeds=embedded, position_ids=batch["places"].transpose(0, 1), use_cache=False
    ).last_hidden_state
    wanted = batch["labels"][:, 1:]
    asked = wanted != IGNORED
    logits = host.lm_head(hidden[:, :-1][asked])
    return F.cross_entropy(logits, wanted[asked]), logits.argmax(-1) == wanted[asked]


def levels_of(rng: np.random.Generator, count: int, mixed: float) -> list[int]:
    """Random levels for a conversation's pictures: all fine, all alike, or most of the older ones coarse."""
    if rng.random() >= mixed:
        return [FINEST] * count
    if rng.random() < 0.25:
        return [int(rng.integers(FINEST + 1))] * count
    newest, fine = int(rng.integers(1, 3)), rng.uniform(0.1, 0.6)
    found = [int(rng.choice(FINEST, p=(0.5, 0.2, 0.15, 0.15))) for _ in range(count)]
    return [FINEST if i >= count - newest or rng.random() < fine else level for i, level in enumerate(found)]


def conversation(
    rng: np.random.Generator, pyramids: Pyramids, practice: Practice, absent: float
) -> list[tuple[int | None, int, str, str]]:
    """A random conversation for `Writer.row`: a picture and a question per turn, then more questions.

    Args:
        absent: share of questions about pictures that aren't there.
    """
    low, high = practice.pictures
    chosen = pyramids.pick(rng, int(rng.integers(low, high + 1)))
    shown = [pyramids.pictures[i] for i in chosen]
    said: list[tuple[int | None, int, str, str]] = []
    for i, level in enumerate(levels_of(rng, len(chosen), practice.mixed)):
        asked = any_question(rng, shown[: i + 1], practice.shares, absent)
        said.append((chosen[i], level, asked.text, asked.answer))
    for _ in range(practice.questions):
        asked = any_question(rng, shown, practice.shares, absent)
        said.append((None, 0, asked.text, asked.answer))
    return said


def _steady(optimizer: Any, warmup: int, steps: int) -> Any:
    return get_constant_schedule_with_warmup(optimizer, warmup)


def learn(
    host: Any,
    writer: Writer,
    practice: Practice,
    *,
    seed: int,
    absent: float = 0.25,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the language model in place."""
    rng, model = np.random.default_rng((seed, practice.steps, *practice.pictures)), host.model.language_model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=practice.rate, betas=(0.9, 0.98), weight_decay=0.0)
    made = get_cosine_schedule_with_warmup if practice.last else _steady
    schedule = made(optimizer, practice.steps // 20, practice.steps)
    model.train()
    begun, losses, rights = time.perf_counter(), list[float](), list[float]()
    for step in range(practice.steps):
        rows = [writer.row(conversation(rng, writer.pyramids, practice, absent)) for _ in range(practice.rows)]
        loss, right = loss_and_right(host, writer.pyramids, writer.batch(rows))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        rights.append(float(right.float().mean()))
        if step % 50 == 49:
            took = time.perf_counter() - begun
            tell(f"{practice.pictures} step {step + 1}: loss {np.mean(losses[-50:]):.3f}, right "
                 f"{np.mean(rights[-50:]):.3f}, {took:.0f} s")  # fmt: skip
    model.eval()


@torch.no_grad()
def right_by_kind(host: Any, writer: Writer, seed: int, count: int, rows: int, mixed: float = 0.0) -> dict[str, float]:
    """How often the model is right about ``rows`` conversations of ``count`` pictures, by kind of question."""
    found = {}
    for number, kind in enumerate(KINDS):
        only = tuple(float(i == number) for i in range(len(KINDS)))
        rng, practice = (
            np.random.default_rng((seed, count, number)),
            Practice((count, count), mixed, 0, 0, 8, 0.0, False, only),
        )
        batch = writer.batch([writer.row(conversation(rng, writer.pyramids, practice, 0.0)) for _ in range(rows)])
        _, right = loss_and_right(host, writer.pyramids, batch)
        found[kind] = float(right.float().mean())
    return found
