"""A model of one's own, not of transformers, and its adapter; docs/write_a_host.md explains every line."""

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import tokenflex
from tokenflex.contracts import Grid, HostAdapter, HostBatch, Spliced, VisualTokens
from tokenflex.hosts import instruction_mask, instructions_of, placeholders

IMAGE, PAD, WORDS, DIM = 4, 0, 48, 32


class MyLMM(nn.Module):
    """Patches of 8 pixels before a recurrent language model; one row at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.projector = nn.Conv2d(3, DIM, 8, 8), nn.Linear(DIM, DIM)
        self.embed, self.memory, self.head = nn.Embedding(WORDS, DIM), nn.GRU(DIM, DIM), nn.Linear(DIM, WORDS)

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.projector(self.vision(pixels).flatten(2).transpose(1, 2))

    def forward(self, input_ids, attention_mask=None, pixel_values=None, image_features=None) -> CausalLMOutput:
        """Logits of the next word at every place."""
        hidden = self.embed(input_ids)
        seen = image_features if pixel_values is None else self.see(pixel_values).flatten(0, 1)
        if seen is not None:
            hidden = hidden.masked_scatter((input_ids == IMAGE)[..., None], seen)
        return CausalLMOutput(logits=self.head(self.memory(hidden.transpose(0, 1))[0].transpose(0, 1)))


class MyAdapter(HostAdapter):
    """How TokenFlex talks to it."""

    model_type, options = "my-gru", {}
    dim, grid = DIM, Grid(4, 4)

    @classmethod
    def refusal(cls, host):
        return None if isinstance(host, MyLMM) else "it isn't a MyLMM"

    def read(self, inputs):
        cpu = placeholders.on_cpu(inputs)
        spans = placeholders.locate(cpu["input_ids"] == IMAGE, [self.grid.tokens] * len(inputs.get("pixel_values", ())))
        return HostBatch(inputs, cpu, tuple(spans), grids=(self.grid,) * len(spans))

    def encode(self, batch):
        features = self.host.see(batch.inputs["pixel_values"]) if batch.spans else ()
        return tuple(VisualTokens(one[None], self.grid, row=row) for one, row in zip(features, batch.rows, strict=True))

    def instructions(self, batch):
        ids, mask = batch.cpu["input_ids"], batch.cpu.get("attention_mask")
        return instructions_of(batch, instruction_mask(ids, mask, None, image_token_id=IMAGE), self.host.embed)

    def count(self, batch, kept, frames=None):
        return torch.tensor([[k.tokens if isinstance(k, Grid) else k for k in levels] for levels in kept])

    def splice(self, batch, images, scaled, padding_side=None):
        features = [item.features.flatten(0, 1) for item in scaled]
        plan = placeholders.plan(batch, [(len(one),) for one in features], padding_side)
        out = placeholders.apply(plan, batch, pad_token_id=PAD) | {"image_features": torch.cat(features)}
        return Spliced(out, tuple(map(len, features)), placeholders.index(plan))

    def parameter_groups(self):
        rest = (*self.host.embed.parameters(), *self.host.memory.parameters(), *self.host.head.parameters())
        groups = {"vision_tower": self.host.vision.parameters(), "projector": self.host.projector.parameters()}
        return {name: tuple(given) for name, given in groups.items()} | {"language_model": rest}


if __name__ == "__main__":
    torch.manual_seed(0)
    model = MyLMM().eval()
    inputs = {"input_ids": torch.tensor([[9, *[IMAGE] * 16, 10]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    flex = tokenflex.wrap(model, adapter=MyAdapter(model))
    for level in range(flex.compressor.num_levels):
        print(flex.decide(**inputs, level=level)[0].tokens, flex(**inputs, level=level).logits[0, -1].argmax().item())
