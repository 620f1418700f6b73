"""Train a router by the frozen model's own losses on conversations: RGLF, stage 4 of AVG-LLaVA.

    python examples/train_router.py --out my-router
    python examples/train_router.py --model llava-hf/llava-v1.6-vicuna-7b-hf --data chat.json --steps 500

Losses are scored once and kept in a folder; the router is then trained from it as often as you like. The model must
know coarse tokens already (stage 3) for real savings: docs/training.md has all stages as recipes.
"""

import tempfile
from pathlib import Path

from start import arguments, image, loaded

import tokenflex
from tokenflex.training import ChatDataset, FlexCollator, FlexTrainingArguments, RGLFTrainer, read_rows, score


def conversations(asked) -> list:
    """Rows with an image and a conversation; made up where no file is given."""
    if asked.data is not None:
        return read_rows(asked.data)
    turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    return [{"image": image(asked, seed), "messages": turns} for seed in range(8)]


def main() -> None:
    """Score, train, save."""
    asked = arguments(
        __doc__,
        data={"help": "JSON, JSON Lines or Parquet of conversations"},
        out={"default": "my-router", "help": "folder for the parts"},
        steps={"type": int, "default": 4},
    )
    host, processor = loaded(asked)
    flex = tokenflex.wrap(host, processor=processor)
    dataset, collator = ChatDataset(conversations(asked)), FlexCollator(processor)
    with tempfile.TemporaryDirectory() as work:
        store = score(flex, dataset, collator, Path(work, "feedback"))
        settings = FlexTrainingArguments(
            output_dir=str(Path(work, "run")), max_steps=asked.steps, per_device_train_batch_size=4,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=host.device.type == "cpu",
        )  # fmt: skip
        trainer = RGLFTrainer(flex, settings, feedback=store, train_dataset=dataset, data_collator=collator)
        trainer.train()
    flex.save_parts(asked.out)
    print(f"{asked.out}: {len(dataset)} conversations, last loss {trainer.state.log_history[-1]['train_loss']:.3f}")


if __name__ == "__main__":
    main()
