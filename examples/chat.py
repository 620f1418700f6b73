"""A conversation about one image: every turn goes on from the cache of the last one, which holds the shortened prompt.

python examples/chat.py --turns "w1 w2" "w3" "w4 w5"
python examples/chat.py --model my-model --image photo.jpg --turns "Who is on the left?" "And behind her?"
"""

import torch
from start import arguments, batch, image, loaded

import tokenflex


def main() -> None:
    """Ask turn by turn."""
    asked = arguments(__doc__, turns={"nargs": "+", "default": ["w1 w2", "w3"], "help": "what is asked"})
    host, processor = loaded(asked)
    trained = isinstance(host, tokenflex.FlexModel)
    flex = host if trained else tokenflex.wrap(host, router="reconstruction", voter="mean", processor=processor)
    first, *later = asked.turns
    inputs = batch(host, processor, image(asked), first)
    out = flex.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True)
    show(processor, out, before=inputs["input_ids"].shape[1], said=out.sequences)
    for text in later:
        turn = processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        new = processor.tokenizer(turn, return_tensors="pt", add_special_tokens=False)["input_ids"].to(host.device)
        ids = torch.cat([out.compact_sequences, new], dim=1)
        mask = torch.cat([out.compact_attention_mask, torch.ones_like(new)], dim=1)
        cache = {"cache": out.cache} if "cache" in out else {"past_key_values": out.past_key_values}
        out = flex.generate(input_ids=ids, attention_mask=mask, **cache, max_new_tokens=8, return_dict_in_generate=True)
        show(processor, out, before=ids.shape[1], said=out.compact_sequences)


def show(processor, out, before: int, said: torch.Tensor) -> None:
    """The answer, and how much of the conversation is in the cache."""
    text = processor.batch_decode(said[:, before:], skip_special_tokens=True)[0].strip()
    print(f"{text}   ({out.compact_sequences.shape[1]} tokens so far)")


if __name__ == "__main__":
    main()
