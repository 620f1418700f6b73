"""The router: the library's own, trained by the library's own stage 4 on rows of one picture.

A row asks about the picture it shows, or about another one, whose answer is "absent" at every level. So the router
learns which pictures a question needs in detail, from how likely the language model finds each answer at each level.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.fading.host import reading_last_turn
from benchmarks.fading.pictures import NAMES, draw
from benchmarks.fading.questions import any_question
from tokenflex.contracts import Component
from tokenflex.model import FlexModel
from tokenflex.model.loading import fresh
from tokenflex.quickstart.recipe import quiet_arguments, run_quietly
from tokenflex.registry import routers
from tokenflex.training import (
    STAGES,
    ChatDataset,
    FlexCollator,
    RGLFTrainer,
    RouterModel,
    score,
)
from tokenflex.training.objectives import RGLFObjective
from tokenflex.training.router_only import stored_host_of

SHARES = (0.4, 0.4, 0.1, 0.1)
"""Of the kinds of questions, in the order of `KINDS`."""
ABSENT = 0.5
TOLERANCE, RANK, SURE = 0.3, 0.1, 1.0
ALIKE = 7.5


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows in chat format: a training picture and a question, half of them about one that isn't there."""
    rng, made = np.random.default_rng((seed, count, 4)), []
    for _ in range(count):
        picture = draw(rng, "train", int(rng.integers(len(NAMES))))
        asked = any_question(rng, [picture], SHARES, ABSENT)
        content = [{"type": "image"}, {"type": "text", "text": asked.text}]
        said = [{"role": "user", "content": content}, {"role": "assistant", "content": asked.answer}]
        made.append({"image": picture.image, "messages": said})
    return made


def flex_of(host: Any, processor: Any) -> FlexModel:
    """The host with fresh parts: rows of the router see each other, so that a word can find what it names."""
    served: type[Component] = routers.get("avg")
    settings = {"text_tokens": 6, "heads": 1, "attend": "tokens", "order": "text", "dropout": 0.0}
    router: Any = served.Config.from_dict(settings)
    flex = fresh(host, router=router, adapter=reading_last_turn(host, processor))
    _begin_alike(flex.compressor.router)
    return flex


@torch.no_grad()
def _begin_alike(router: Any) -> None:
    """Rows begin by attending to their like, so that a word finds what it names in the picture, or only itself."""
    attention = router.merger.self_attn
    queries, keys, values = attention.in_proj_weight.chunk(3)
    nn.init.orthogonal_(queries, gain=ALIKE)
    keys.copy_(queries)
    nn.init.orthogonal_(values)
    attention.out_proj.weight.copy_(values.T)


def train_router(
    flex: FlexModel, processor: Any, *, seed: int, count: int, steps: int, rate: float, batch: int = 64
) -> dict[str, float]:
    """Score ``count`` rows once, and train the router on what was stored; gives how well it ranks them.

    Args:
        steps: optimizer steps of ``batch`` rows.
        rate: peak learning rate.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs: dict[str, Any] = {"router_inputs": "auto", "router_inputs_at": "projector", "progress": False}
        data, collator = ChatDataset(rows(seed, count)), FlexCollator(processor)
        store = score(flex, data, collator, Path(scratch), batch_size=64, **inputs)
        alone = RouterModel(flex.compressor, stored_host_of(store))
        more: dict[str, Any] = {"objective": RGLFObjective(tolerance=TOLERANCE, rank_weight=RANK, ce_weight=SURE)}
        with quiet_arguments(batch, steps, seed, flex.device) as arguments:
            run_quietly(RGLFTrainer(alone, arguments, stage=STAGES[4].with_rates(router=rate), feedback=store, **more))
    flex.eval()
    coarsest = (store.nll <= store.nll.amin(-1, keepdim=True) + TOLERANCE).int().argmax(-1)
    return {"finest needed": float((coarsest == store.nll.shape[1] - 1).float().mean())}
