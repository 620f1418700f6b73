"""Which way of keeping few tokens changes the model's next word least? Stock weights, nothing is trained.

    python examples/compare_scalers.py
    python examples/compare_scalers.py --model llava-hf/llava-v1.6-vicuna-7b-hf --image photo.jpg --question "Who?"

The figure is the Kullback-Leibler divergence of the next word's distribution from the one with all tokens, in nats, the
mean over images. It costs no answers; ``tokenflex evaluate`` compares accuracy. Plugins that are installed take part.
"""

import torch
from start import arguments, batch, image, loaded

import tokenflex
from tokenflex.errors import TokenFlexError


@torch.no_grad()
def divergences(flex: tokenflex.FlexModel, inputs: dict) -> list[float]:
    """Per level."""
    finest = flex(**inputs, level="finest").logits[:, -1].float().log_softmax(-1)
    found = []
    for level in range(flex.compressor.num_levels):
        here = flex(**inputs, level=level).logits[:, -1].float().log_softmax(-1)
        found.append(float((finest.exp() * (finest - here)).sum()))
    return found


def main() -> None:
    """A row per scaler, a column per level."""
    asked = arguments(__doc__, images={"type": int, "default": 4, "help": "images of noise, where no --image is given"})
    host, processor = loaded(asked)
    count = asked.images if asked.image is None else 1
    batches = [batch(host, processor, image(asked, seed), asked.question) for seed in range(count)]
    for name in tokenflex.scalers.names():
        try:
            flex = tokenflex.wrap(host, scaler=name, router="constant", processor=processor)
            rows = torch.tensor([divergences(flex, inputs) for inputs in batches])
        except TokenFlexError as error:
            print(f"{name:16s} {str(error).splitlines()[0][:90]}")
            continue
        print(f"{name:16s} " + "  ".join(f"{value:.4f}" for value in rows.mean(0).tolist()))


if __name__ == "__main__":
    main()
