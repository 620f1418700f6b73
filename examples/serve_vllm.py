"""vLLM answers, TokenFlex chooses the tokens: images of different numbers of tokens in one batch of the engine.

    pip install "vllm==0.32.*" tokenflex-vllm
    python examples/serve_vllm.py --model llava-hf/llava-v1.6-vicuna-7b-hf --parts my-router --image photo.jpg \
        --question "What does the sign say?"

The front encodes images, routes and scales; it never loads the language model. docs/serving.md says which models vLLM
takes embeddings of, and how to run the engine as a server of its own.
"""

from start import arguments, batch, image

from tokenflex.serving import Front, vllm_prompt


def main() -> None:
    """One question at three budgets, in one batch."""
    asked = arguments(__doc__, parts={"help": "folder or hub id of a router's parts"})
    import vllm

    front = Front.from_pretrained(asked.model, asked.parts)
    inputs = batch(front.flex.host, front.processor, image(asked), asked.question)
    requests = [front.flex.export(**inputs, budget=ratio)[0] for ratio in (1.0, 0.5, 0.25)]
    engine = vllm.LLM(asked.model, enable_mm_embeds=True)
    settings = vllm.SamplingParams(temperature=0, max_tokens=64)
    outputs = engine.generate([vllm_prompt(request) for request in requests], settings)
    for request, output in zip(requests, outputs, strict=True):
        print(f"{request.visual_tokens} of {request.visual_tokens_full} tokens: {output.outputs[0].text}")


if __name__ == "__main__":
    main()
