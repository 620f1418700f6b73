"""Qwen-VL with levels before the vision tower: a look at a small image, a larger one only if the question needs it.

    python examples/qwen_vl.py
    python examples/qwen_vl.py --model Qwen/Qwen2.5-VL-3B-Instruct --image page.png --question "What is the total?"

The router is fresh here, so its choice means nothing until it is trained; levels can be forced all the same.
"""

from start import answer, arguments, batch, image, loaded

import tokenflex
from tokenflex.quickstart import qwen_host


def main() -> None:
    """Sizes, what each costs, and the settings that make the host's own processor do the same."""
    asked = arguments(__doc__)
    host, processor = qwen_host.seeded(0) if asked.model is None else loaded(asked)
    flex = tokenflex.wrap(host.eval(), scaler="resolution", processor=processor)
    question = "which photo" if asked.model is None else asked.question  # in the words that the tiny model has
    inputs = batch(host, processor, image(asked), question)
    for level in range(flex.compressor.num_levels):
        (decision,) = flex.decide(**inputs, level=level)
        ids = flex.generate(**inputs, level=level, max_new_tokens=8, do_sample=False)
        said = answer(processor, inputs, ids)
        print(f"level {level}: {decision.tokens:4d} of {decision.of} tokens, {decision.processor_kwargs()}: {said}")
    (decision,) = flex.decide(**inputs)
    print(f"the router would take level {decision.level}")


if __name__ == "__main__":
    main()
