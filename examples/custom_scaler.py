"""A method of one's own: keep the tokens that stand out from the mean of their view. Checked, then used by its name.

    python examples/custom_scaler.py

docs/write_a_scaler.md explains it step by step, and makes a distribution of it.
"""

from dataclasses import dataclass

import torch
from start import arguments, batch, image, loaded

import tokenflex
from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, kept_layouts, selected
from tokenflex.testing import check_component


@tokenflex.scalers.register("standing-out")
class StandingOut(Scaler):
    """Keeps the tokens farthest from the mean of their view, in the order of the grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``ratios``, share of the tokens kept per level, coarse to fine."""

        ratios: Ratios = RATIOS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = check_ratios(config.ratios)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """How many tokens each level keeps."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Keep the farthest."""
        with torch.no_grad():
            features = tokens.features.float()
            distance = (features - features.mean(-2, keepdim=True)).norm(dim=-1)
            farthest = distance.argsort(dim=-1, descending=True, stable=True)
        return selected(tokens, farthest[..., : self.granularities(tokens.grid)[level]])


def main() -> None:
    """Check the laws, then use it."""
    asked = arguments(__doc__)
    print(check_component(StandingOut.Config()))
    host, processor = loaded(asked)
    flex = tokenflex.wrap(host, scaler="standing-out", processor=processor)
    inputs = batch(host, processor, image(asked), asked.question)
    for level in range(flex.compressor.num_levels):
        (decision,) = flex.decide(**inputs, level=level)
        print(f"level {level}: {decision.tokens} of {decision.of} tokens")


if __name__ == "__main__":
    main()
