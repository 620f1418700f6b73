"""What steps and requests cost in FLOPs at any size, 7B included, without running them: torch counts on fake tensors.

    python -m benchmarks.arithmetic                 # ratios of the 7B model, under a minute on any computer
    python -m benchmarks.arithmetic --requests 7b   # what a request costs at each level, and where routing pays

The modules are the host's own, without memory for their weights; each is counted once for every length it is given, and
a step is the sum of what it runs. Linear layers, convolutions and attention count; sums, norms and activations don't.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import sizes
from benchmarks.measure import Flops
from benchmarks.sizes import Size
from tokenflex import compressor
from tokenflex.checkpoint import adapter_for, config_of
from tokenflex.compressor import Compressor
from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.profiling.break_even import fit
from tokenflex.routers.avg import AVGRouter


@dataclass(frozen=True)
class Cost:
    """FLOPs of a module: its forward pass, and what training it adds."""

    forward: int
    backward: int

    @property
    def trained(self) -> int:
        """Both passes."""
        return self.forward + self.backward


class Arithmetic:
    """FLOPs of one size's modules, steps and requests, for one sample.

    Args:
        size: the model and what it is fed; images of one size.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        plain = replace(size, batch=1, device="cpu", dtype=torch.float32)
        self.fake = FakeTensorMode()
        with self.fake:
            self.host: Any = sizes.host(replace(plain, text={**size.text, "num_hidden_layers": 1}), 0)
            self.adapter = adapter_for(self.host)
            self.parts = {name: self._parts(rows) for name, rows in (("routed", "all"), ("pooled", "pooled"))}
        inputs = sizes.batch(plain, 0)
        self.views = int(inputs["pixel_values"].shape[1])
        self.grid: Grid = self.adapter.grid
        scaler: Any = self.parts["routed"].scaler
        layouts: list[Grid] = list(scaler.layouts(self.grid))
        self.positions = sum(one.tokens for one in layouts)
        self.visual: list[int] = self.adapter.count(self.adapter.read(inputs), [layouts])[0].tolist()
        """Visual tokens at each level, coarse to fine."""

    @cached_property
    def tower(self) -> Cost:
        """The vision tower on all views of an image; gradients come through the layer that the projector reads."""
        side, tower = self.size.vision["image_size"], self.host.model.vision_tower
        layer = self.host.config.vision_feature_layer

        def run(pixels: Tensor) -> Tensor:
            return tower(pixels, output_hidden_states=True).hidden_states[layer]

        return self._cost(tower, run, (self.views, 3, side, side))

    @cached_property
    def projector(self) -> Cost:
        """The projector on the same, without gradients for what it is given."""
        seen = (self.views, self.grid.tokens, self.size.vision["hidden_size"])
        return self._cost(self.host.model.multi_modal_projector, self.host.model.multi_modal_projector, seen)

    def body(self, length: int) -> Cost:
        """The language model without its output embeddings, on a row of so many tokens; its layers cost the same."""
        model, layers = self.host.model.language_model, self.size.text["num_hidden_layers"]

        def run(rows: Tensor, mask: Tensor) -> Tensor:
            return model(None, mask, inputs_embeds=rows.requires_grad_(), use_cache=False).last_hidden_state

        one = self._cost(model, run, (1, length, self.adapter.dim), (1, 1, length, length))
        return Cost(layers * one.forward, layers * one.backward)

    def head(self, positions: int) -> Cost:
        """The output embeddings at so many positions."""
        return Cost(*(factor * positions * self.host.lm_head.weight.numel() for factor in (2, 4)))

    def router(self, name: str = "routed") -> Cost:
        """Our router and voter on one image, pooling included: ``routed`` or ``pooled``."""
        parts, words = self.parts[name], self.size.words

        def run(tokens: Tensor, embeddings: Tensor) -> Tensor:
            told = Instruction(embeddings, torch.ones(words, dtype=torch.bool))
            return parts.scores((VisualTokens(tokens, self.grid, row=0),), (told,))

        return self._cost(parts, run, (self.views, self.grid.tokens, self.adapter.dim), (words, self.adapter.dim))

    @cached_property
    def published_router(self) -> Cost:
        """The published router on one image: all rows of all levels and the words, in every view."""
        router: Any = self.parts["routed"].router
        rows = (self.views, self.positions + router.text_tokens, self.adapter.dim)
        return self._cost(router, lambda sequence: router.mlp(router.merger(sequence)), rows)

    def stage3(self, *, published: bool, frozen_tower: bool = True) -> int:
        """A step with gradients for everything but, where it is frozen, the tower."""
        passes = len(self.visual) if published else 1
        tower = self.tower.forward if frozen_tower else self._layers(self.tower)
        projector = self.projector
        if not frozen_tower:
            projector = Cost(projector.forward, 2 * projector.forward)
        return passes * (tower + projector.trained) + sum(self._language(published, trained=True))

    def stage4(self, *, published: bool) -> int:
        """A step with the language model in the loop, and gradients for the router only."""
        passes = len(self.visual) + 1 if published else 1
        router = self.published_router if published else self.router()
        seen = passes * (self.tower.forward + self.projector.forward)
        return seen + sum(self._language(published, trained=False)) + router.trained

    def request(self, level: int, router: str | None, answers: int) -> int:
        """One request, without cached words of an earlier one: prefill, and decoding of all new tokens but the first.

        Args:
            router: ``routed``, ``pooled``, or None where the level is forced.
        """
        seen = self.tower.forward + self.projector.forward + (self.router(router).forward if router else 0)
        prompt = self.visual[level] + self.size.words
        decoded = self.body(1).forward * (answers - 1)
        return seen + self.body(prompt).forward + decoded + self.head(answers).forward

    def _language(self, published: bool, trained: bool) -> Sequence[int]:
        """The language model at every level."""
        found: list[int] = []
        for count in self.visual:
            length = count + self.size.words
            body, head = self.body(length), self.head(length if published else self.size.answers)
            found.append(self._layers(body) + head.trained if trained else body.forward + head.forward)
        return found

    def _layers(self, cost: Cost) -> int:
        """Training of layers, which may be computed again in the backward pass."""
        return cost.trained + (cost.forward if self.size.checkpointing else 0)

    def _parts(self, rows: str) -> Compressor:
        """The default parts, with a router for these rows."""
        chosen = {"scaler": "average-pool", "voter": "position-weighted", "policy": "argmax"}
        configs: dict[str, Any] = {kind: config_of(kind, name) for kind, name in chosen.items()}
        configs["router"] = AVGRouter.Config(rows=rows)
        return compressor.build(**configs, dim=self.adapter.dim, grid=self.adapter.grid)

    def _cost(self, module: nn.Module, run: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Cost:
        """Count a module's forward pass, and its backward pass with gradients for all its parameters.

        Args:
            run: takes tensors of these shapes.
        """
        flops = Flops()
        module.requires_grad_(True)
        with self.fake:
            given = [torch.empty(shape) for shape in shapes]
            output = flops(lambda: run(*given))
            flops(lambda: output.sum().backward())
        module.zero_grad(set_to_none=True)
        return Cost(*flops.counts)


def ratios(size: Size) -> dict[str, float]:
    """Ours by the published procedure, in FLOPs: the least that time can come to where arithmetic is all it takes."""
    made = Arithmetic(size)
    return {
        "stage3": made.stage3(published=False) / made.stage3(published=True),
        "stage3_tower_trained": made.stage3(published=False, frozen_tower=False)
        / made.stage3(published=True, frozen_tower=False),
        "stage4": made.stage4(published=False) / made.stage4(published=True),
        "router": made.router().forward / made.published_router.forward,
    }


def requests(size: Size, answers: int) -> str:
    """What a request costs at each level, forced and routed, as a table of Markdown, and what that means for routing.

    Args:
        answers: new tokens.
    """
    made = Arithmetic(size)
    forced = [made.request(level, None, answers) for level in range(len(made.visual))]
    router, whole = made.router().forward, forced[-1]
    rows = []
    for level, (tokens, cost) in enumerate(zip(made.visual, forced, strict=True)):
        share = f"{100 * (cost + router) / whole:.0f} %"
        rows.append(f"| {level} | {tokens} | {cost / 1e12:.3g} | {(cost + router) / 1e12:.3g} | {share} |")
    slope = fit([float(tokens) for tokens in made.visual], [float(cost) for cost in forced]).slope
    head = "| level | visual tokens | TFLOP, forced | TFLOP, routed | routed, of the finest forced |"
    told = (
        f"{answers} new tokens, {size.words} text tokens. The decision costs {router / 1e12:.3g} TFLOP and a dropped "
        f"visual token saves {slope / 1e9:.3g} GFLOP: routing pays when it drops more than {router / slope:.0f} of "
        f"{made.visual[-1]} visual tokens."
    )
    return "\n".join([head, "|---|---|---|---|---|", *rows, "", told])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the ratios of all sizes, or what requests cost at one of them, to standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arithmetic", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", choices=sizes.SIZES, metavar="SIZE", help="what a request costs at this size")
    parser.add_argument("--answers", type=int, default=16, metavar="N", help="new tokens of a request (default: 16)")
    options = parser.parse_args(argv)
    if options.requests:
        sys.stdout.write(requests(sizes.SIZES[options.requests], options.answers) + "\n")
        return
    for name, size in sizes.SIZES.items():
        told = ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios(size).items())
        sys.stdout.write(f"{name}: {told}\n")


if __name__ == "__main__":
    main()
