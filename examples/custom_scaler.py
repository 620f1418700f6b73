"""A method of one's own: keep the tokens that stand out from the mean of their view. Checked, then used by its name.

    python examples/custom_scaler.py

docs/write_a_scaler.md explains it step by step, and makes a distribution of it.
"""

from start import arguments, batch, image, loaded

import tokenflex
from tokenflex.scalers import SelectionScaler
from tokenflex.testing import check_component


@tokenflex.scalers.register("standing-out")
class StandingOut(SelectionScaler):
    """Keeps the tokens farthest from the mean of their view, in the order of the grid."""

    def scores(self, image):
        """How far a token is from the mean."""
        features = image.features.float()
        return (features - features.mean(-2, keepdim=True)).norm(dim=-1)


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
