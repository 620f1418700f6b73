"""Router training from stored feedback and stored router inputs, against the same epochs with the model in the loop."""

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from benchmarks import measure, sizes, steps
from benchmarks.measure import Row
from benchmarks.sizes import Size
from benchmarks.steps import DisagreementError
from tokenflex.model import FlexModel
from tokenflex.training import FlexTrainingArguments, RGLFTrainer
from tokenflex.training.router_only import RouterModel
from tokenflex.training.score import score
from tokenflex.training.store import FeedbackStore

TOLERANCE = 1e-3


class Epochs(TrainerCallback):
    """Takes the time of every epoch."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self._start = device, list[float](), 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._start = self._now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Read the clock."""
        self.seconds.append(self._now() - self._start)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def rows(size: Size, flex: FlexModel, batch: dict[str, Tensor], seed: int) -> list[Row]:
    """Seconds of the epochs, without and with the pass that fills the store.

    Raises:
        DisagreementError: the two runs don't end with the same router.
    """
    data, collator = sizes.dataset(size, seed, size.samples), sizes.collator(size)
    steps.prepare(flex, 4)
    steps.run(flex, batch, "stage4/ours")
    flex.zero_grad(set_to_none=True)
    start = copy.deepcopy(flex.compressor.state_dict())
    with tempfile.TemporaryDirectory() as scratch:
        live = _trained(size, flex, Path(scratch, "live"), seed, train_dataset=data, data_collator=collator)
        trained = copy.deepcopy(flex.compressor.state_dict())
        folder = Path(scratch, "store")
        scoring = measure.timed(lambda: _score(size, flex, data, collator, folder), size.device)
        store = FeedbackStore(folder)
        router = RouterModel.from_store(store)
        router.compressor.load_state_dict(start)
        router.train()
        stored = _trained(size, router, Path(scratch, "stored"), seed, feedback=store)
    if size.dtype == torch.float32:
        _compare(trained, router.compressor.state_dict())
    title = f"stage 4, {size.epochs} epochs over {size.samples} samples from a store"
    return [
        Row(f"{title}, time", "seconds", stored, live, "store_ratio", total=True),
        Row(f"{title}, with the pass that fills it, time", "seconds", [scoring + sum(stored)], [sum(live)]),
    ]


def _score(size: Size, flex: FlexModel, data: Any, collator: Any, folder: Path) -> None:
    precision = "no" if size.dtype == torch.float32 else "bf16"
    score(
        flex, data, collator, folder, batch_size=size.batch, router_inputs="auto", precision=precision, progress=False
    )


def _trained(size: Size, model: Any, folder: Path, seed: int, **others: Any) -> list[float]:
    """Seconds per epoch of one run."""
    arguments = FlexTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=size.epochs,
        per_device_train_batch_size=size.batch,
        seed=seed,
        bf16=size.dtype != torch.float32,
        use_cpu=size.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=size.device != "cpu",
    )
    epochs = Epochs(size.device)
    trainer = RGLFTrainer(model, arguments, callbacks=[epochs], **others)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    return epochs.seconds


def _compare(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        off, norm = float((actual[name] - value).norm()), float(value.norm())
        if not off <= TOLERANCE * norm:
            raise DisagreementError(
                f"after the epochs {name} differs by {off / max(norm, 1e-30):.2g} of its norm between the run from the "
                f"store and the other, and {TOLERANCE} is allowed; no figures."
            )
