"""Answer one question at every level, from the fewest visual tokens to all of them.

python examples/force_level.py
python examples/force_level.py --model llava-hf/llava-v1.6-vicuna-7b-hf --image photo.jpg --question "What is this?"
"""

from start import answer, arguments, batch, image, loaded

import tokenflex


def main() -> None:
    """Print tokens and answer, level by level."""
    asked = arguments(__doc__)
    host, processor = loaded(asked)
    flex = tokenflex.wrap(host, router="constant", processor=processor)  # levels are forced: no router is needed
    inputs = batch(host, processor, image(asked), asked.question)
    for level in range(flex.compressor.num_levels):
        (decision,) = flex.decide(**inputs, level=level)
        ids = flex.generate(**inputs, level=level, max_new_tokens=16, do_sample=False)
        print(f"level {level}: {decision.tokens:5d} of {decision.of} tokens: {answer(processor, inputs, ids)}")


if __name__ == "__main__":
    main()
