"""A loop that watches a screen: every step shows a new screenshot, and old ones fade instead of being deleted.

python examples/screens.py --steps 6 --tokens 400
python examples/screens.py --model my-model --steps 30 --tokens 4000
"""

from PIL import Image, ImageDraw
from start import arguments, loaded

import tokenflex

SIZE = (90, 60)


def main() -> None:
    """Show one screen per step, and ask what to do; then ask about the first one."""
    asked = arguments(
        __doc__,
        steps={"type": int, "default": 6, "help": "screenshots"},
        tokens={"type": int, "default": 400, "help": "visual tokens that all screenshots share"},
    )
    host, processor = loaded(asked)
    trained = isinstance(host, tokenflex.FlexModel)
    flex = host if trained else tokenflex.wrap(host, router="constant", voter="mean", processor=processor)
    recall = 0.25 if trained else 0.0  # a router that wasn't trained has nothing to say about older images
    budget = tokenflex.Fade(tokens=asked.tokens, recall=recall)
    conversation = tokenflex.Conversation(flex, processor, budget=budget)
    for step in range(asked.steps):
        show(step, conversation.ask(asked.question, [screenshot(step)], max_new_tokens=4))
    show(asked.steps, conversation.ask("w4 w5", max_new_tokens=4))
    print(f"{conversation.held.cache} bytes of cache, {conversation.held.features} bytes of features")


def screenshot(step: int) -> Image.Image:
    """A window with a bar that grows, in place of a real screen."""
    screen = Image.new("RGB", SIZE, (30 + 20 * (step % 8), 60, 90))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((5, 5, SIZE[0] - 5, 15), fill="white")
    draw.rectangle((5, 40, 10 + 10 * (step % 8), 50), fill="orange")
    return screen


def show(step, reply) -> None:
    """What the turn cost, and at which level every screenshot was seen."""
    levels = " ".join(str(decision.level) for decision in reply.decisions)
    full = sum(decision.of for decision in reply.decisions)
    print(f"turn {step}: {reply.tokens} of {full} tokens, levels {levels}; read {reply.read}, reused {reply.reused}")


if __name__ == "__main__":
    main()
