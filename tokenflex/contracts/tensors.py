"""The data that parts hand to one another, and the axis words used in every shape of the library.

batch   items of equal geometry, stacked; absent for a single item
views   crops of one image, the whole image first, or frames
tokens  visual tokens of one view, row-major
kept    tokens of one view after scaling
prompt  tokens of the question: no padding, no placeholders, no targets
voters  tokens that cast ballots
levels  granularities; level 0 keeps fewest
dim     width of the language model's embeddings
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.errors import InputError
from tokenflex.renamed import warn

Need = Literal["attention", "keys", "instruction"]
"""What a part may ask for besides features and grid; each is a field of `VisualTokens`."""


READ_OFF: tuple[Need, ...] = ("attention", "keys")
"""The needs that a host adapter reads off the vision tower."""


@dataclass(frozen=True)
class Grid:
    """A rectangle of tokens, counted in tokens.

    A grid lays tokens out row-major: token ``i`` lies at ``divmod(i, cols)``.
    """

    rows: int
    cols: int

    @property
    def tokens(self) -> int:
        """Number of tokens in the grid."""
        return self.rows * self.cols


@dataclass(frozen=True)
class VisualTokens:
    """The projected tokens of one image (or of a stack of images of equal geometry).

    Attributes:
        features: ``(*batch, views, tokens, dim)``, after the vision-language projector.
        grid: layout of the tokens of each view.
        row: row of the host batch the image belongs to; -1 for a stack.
        planes: further features of the same shape that are added deeper in the host (DeepStack).
        separators: vectors the host's encoder itself puts around and between tokens; None where there are none.
        video: the views are frames in order of time, so that neighbours may be merged; otherwise they are crops.
        attention: how much the vision tower looks at each token, >= 0: from the class token, or where there is none
            from all tokens on average; mean over heads, of the layer the features come from. Only if asked for.
        keys: ``(*batch, views, tokens, width)``, the tokens' attention keys in that layer, heads side by side. Only if
            asked for.
        instruction: the prompt tokens the image was sent with, padded in a stack. Only if asked for.
    """

    features: Float[Tensor, "*batch views tokens dim"]
    grid: Grid
    row: int = -1
    planes: tuple[Float[Tensor, "*batch views tokens dim"], ...] = ()
    separators: Float[Tensor, "separators dim"] | None = None
    video: bool = False
    attention: Float[Tensor, "*batch views tokens"] | None = None
    keys: Float[Tensor, "*batch views tokens width"] | None = None
    instruction: "Instruction | None" = None

    @property
    def clip(self) -> bool:
        """The name of `video` in version 0.1."""
        warn("VisualTokens.clip", "VisualTokens.video")
        return self.video

    @property
    def marks(self) -> Float[Tensor, "separators dim"] | None:
        """The name of `separators` in version 0.1."""
        warn("VisualTokens.marks", "VisualTokens.separators")
        return self.separators


@dataclass(frozen=True)
class ScaledTokens:
    """The tokens of one image at one level.

    Attributes:
        features: ``(*batch, views, kept, dim)``.
        assignment: ``(*batch, views, tokens)``, index of the kept token each source token went into, -1 if
            it was dropped.
        grid: layout of the kept tokens, or None when they no longer form a grid.
        frames: ``(views,)``, best on the CPU, the kept view each source view went into, ascending, where frames of a
            video were merged; None where every view is kept.
        averages: features are the unweighted means of the source tokens that ``assignment`` names (and, where every
            source is kept, in their order); False where frames were merged.
        nested: source tokens that share a kept token at the next finer level share one at this level too.
        attention: ``(*batch, views, tokens)``, `VisualTokens.attention` of the source tokens; only for routers that ask
            for it.
    """

    features: Float[Tensor, "*batch kept_views kept dim"]
    assignment: Int[Tensor, "*batch views tokens"]
    grid: Grid | None
    frames: Int[Tensor, " views"] | None = None
    averages: bool = False
    nested: bool = False
    attention: Float[Tensor, "*batch views tokens"] | None = None


@dataclass(frozen=True)
class Instruction:
    """The prompt tokens of the user's request, as input embeddings of the host's language model.

    Attributes:
        embeddings: ``(*batch, prompt, dim)``; ``prompt`` may be 0.
        mask: ``(*batch, prompt)``, False for rows that aren't prompt tokens of the request: padding of a stack, or what
            only a reproduction of the published text filter looks at.
    """

    embeddings: Float[Tensor, "*batch prompt dim"]
    mask: Bool[Tensor, "*batch prompt"]


@dataclass(frozen=True)
class Ballots:
    """One vote per voter and level.

    Attributes:
        logits: ``(*batch, views, voters, levels)``.
        mask: ``(*batch, views, voters)``, False for voters that must not count.
        segments: how the voters axis is laid out: successive grids whose tokens add up to ``voters``.
    """

    logits: Float[Tensor, "*batch views voters levels"]
    mask: Bool[Tensor, "*batch views voters"]
    segments: tuple[Grid, ...]


@dataclass(frozen=True)
class Tried:
    """One pass of the language model over an image, at one level, and how sure its answer was.

    Attributes:
        level: of this pass.
        tokens: visual tokens of this pass, separators included.
        confidence: of the row's answer, higher is surer; None where it wasn't asked: at the last level.
        threshold: what the confidence was compared with; below it a finer level is tried. None like it.
    """

    level: int
    tokens: int
    confidence: float | None = None
    threshold: float | None = None

    @property
    def reason(self) -> str:
        """Why this was the last pass, or why it wasn't, as a clause."""
        if self.confidence is None or self.threshold is None:
            return "there is no finer level to try"
        sign = "<" if self.confidence < self.threshold else ">="
        return f"confidence {self.confidence:.4g} {sign} {self.threshold:.4g}"


@dataclass(frozen=True)
class Decision:
    """What was decided for one image.

    Attributes:
        level: chosen level, 0 = fewest tokens; after escalation the last one that was tried.
        scores: the voter's scores ``(levels,)``, detached; None when no router was asked.
        tokens: visual tokens the language model sees for this image, separators included; after escalation the sum
            over all passes.
        of: visual tokens the unmodified host would have seen.
        tried: the passes in their order, where answers were allowed to escalate; else empty.
        processor: settings by which the host's own processor, or that of a serving engine, makes an image of about
            the chosen number of tokens; empty where it has none.
        reason: why this level, as a clause, where the policy says so; else empty.
    """

    level: int
    scores: Float[Tensor, " levels"] | None
    tokens: int
    of: int
    tried: tuple[Tried, ...] = ()
    processor: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""

    @property
    def margin(self) -> float | None:
        """By how much the chosen level's score is ahead of the best other level's, in units of the scores.

        Near 0 it was a close call: another dtype or another order of summation may choose otherwise (docs/parity.md
        says below which margin). It is negative where the scores alone would have chosen another level, which a budget
        didn't allow or an escalation went beyond. Infinite where all other levels are ruled out. None without scores,
        where these are no numbers, and where there is only one level.
        """
        if self.scores is None or self.scores.shape[-1] < 2:
            return None
        scores = [float(score) for score in self.scores.detach().double().cpu()]
        own = scores.pop(self.level)
        ahead = own - max(scores) if not any(map(math.isnan, scores)) else math.nan
        return None if math.isnan(ahead) else ahead

    def processor_kwargs(self) -> dict[str, Any]:
        """`processor`, to be passed on, for instance ``{"size": {"shortest_edge": 784, "longest_edge": 56644}}``.

        Raises:
            InputError: the host's processor has no setting for the size of one image, or it wasn't asked for.
        """
        if not self.processor:
            raise InputError(
                f"level {self.level} has no settings of a processor: only decisions of flex.decide() carry them, for "
                "hosts whose processor takes a size per image (see docs/resolution.md)."
            )
        return dict(self.processor)
