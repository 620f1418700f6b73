"""Turn the dial: the same question with less and less to spend, and a weight that meets a mean over many images.

    python examples/budget_dial.py
    python examples/budget_dial.py --model my-model --image photo.jpg --question "What does the sign say?"

``my-model`` is a folder of ``flex.save_pretrained``, or any host: then the router that needs no training is used.
"""

from start import arguments, batch, image, loaded

import tokenflex


def main() -> None:
    """Print what is spent under each budget."""
    asked = arguments(__doc__)
    host, processor = loaded(asked)
    trained = isinstance(host, tokenflex.FlexModel)
    flex = host if trained else tokenflex.wrap(host, router="reconstruction", voter="mean", processor=processor)
    inputs = batch(host, processor, image(asked), asked.question)
    for ratio in (1.0, 0.5, 0.25, 0.1, 0.05):
        (decision,) = flex.decide(**inputs, budget=tokenflex.Budget(ratio=ratio))
        print(f"at most {ratio:4.0%}: level {decision.level}, {decision.tokens} of {decision.of} tokens")

    many = [batch(host, processor, image(asked, seed), asked.question) for seed in range(8)]
    weighed = tokenflex.calibrate(flex, tokenflex.Budget(ratio=0.3), many)
    spent = [flex.decide(**one, budget=weighed)[0] for one in many]
    share = sum(one.tokens for one in spent) / sum(one.of for one in spent)
    print(f"weight {weighed.weight:.4g} spends {share:.0%} on average; levels {[one.level for one in spent]}")


if __name__ == "__main__":
    main()
