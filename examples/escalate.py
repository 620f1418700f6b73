"""No training: answer coarse first, and look closer only where the model is unsure.

    python examples/escalate.py
    python examples/escalate.py --model llava-hf/llava-v1.6-vicuna-7b-hf --image photo.jpg --question "Is it raining?"

The threshold is found on questions without answers, here made up; use some hundred of your own.
"""

from start import answer, arguments, batch, image, loaded

import tokenflex


def main() -> None:
    """Find a threshold that keeps a promise, answer with it, and print the passes."""
    asked = arguments(__doc__, rows={"type": int, "default": 60, "help": "questions to calibrate on"})
    host, processor = loaded(asked)
    flex = tokenflex.wrap(host, router="constant", processor=processor)
    sample = [batch(host, processor, image(asked, seed), asked.question) for seed in range(asked.rows)]
    promise = tokenflex.Escalate(risk=0.5, confidence=0.9, levels=("coarsest", "finest"))
    flex.escalate = tokenflex.calibrate(flex, promise, sample, max_new_tokens=4)
    print(f"threshold {flex.escalate.threshold:.4g}, found on {flex.escalate.calibrated.rows} questions")

    inputs = batch(host, processor, image(asked, asked.rows), asked.question)
    output = flex.generate(**inputs, escalate=True, max_new_tokens=4, return_dict_in_generate=True)
    for tried in output.decisions[0].tried:
        print(f"level {tried.level}: {tried.tokens} tokens, {tried.reason}")
    print(answer(processor, inputs, output.sequences))


if __name__ == "__main__":
    main()
