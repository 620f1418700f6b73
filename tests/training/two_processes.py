"""What two processes compute together, started by torchrun; also called by the tests in one process, as reference.

torchrun --standalone --nproc-per-node 2 -m tests.training.two_processes FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from packaging.version import Version
from torch.distributed.tensor import DTensor

import tokenflex
from tests.conftest import image
from tests.training.conftest import ROWS, turns
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import (
    STAGES,
    ChatDataset,
    FlexCollator,
    FlexTrainingArguments,
    MultiGranularityObjective,
    MultiGranularityTrainer,
    RGLFObjective,
    RGLFTrainer,
    score,
)
from tokenflex.training.stages import select

WAYS = ("joint", "low", "packed")
SINGLES = [
    {"image": image(i), "messages": turns(f"w{i} w2 w{i + 1}", f"w{i + 3} w4")} for i in range(8)
]  # one image each
STAGE3 = STAGES[3].with_rates(vision_tower=1e-2, projector=1e-2, language_model=1e-2)


SMALLER = ("smaller images, low", "smaller images, packed")
"""Ways of stage 3 where every level encodes an image of its own."""
SHARDS = Version(transformers.__version__) >= Version("5.24")
"""FSDP2 under transformers 5.18 looks for the router's weights where they were freed, whatever torch and accelerate."""


def made(seed=0, name=""):
    torch.manual_seed(seed)
    parts = {"scaler": "resolution"} if name in SMALLER else {}
    router = tokenflex.routers.get("avg").Config(dropout=0.0)
    return tokenflex.wrap(tiny_llava_next(), router=router, **parts).train()


def arguments(folder, processes, **settings):
    return FlexTrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, per_device_train_batch_size=4 // processes,
        save_strategy="no", logging_strategy="steps", logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        warmup_steps=0.0, optim="sgd", max_grad_norm=0.0, **settings,
    )  # fmt: skip


def trained(trainer):
    """(losses by step, parameters) after training."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {
        name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }


def figures(trainer):
    """What the logs and an evaluation tell besides losses."""
    trainer.evaluate()
    names = ("visual_tokens", "agreement", "level_0", "level_4", "eval_visual_tokens", "eval_agreement", "eval_regret")
    return [entry[name] for entry in trainer.state.log_history for name in names if name in entry]


def data_parallel(folder, processes):
    """Stages 3 and 4 through the trainers, and the feedback pass."""
    found = {}
    collator = FlexCollator(tiny_llava_next_processor())
    for name in (*WAYS, SMALLER[0]):
        given = {"train_dataset": ChatDataset(ROWS * 2), "data_collator": collator}
        settings, way = arguments(folder / "out", processes), name.split()[-1]
        trainer = MultiGranularityTrainer(made(name=name), settings, stage=STAGE3, memory=way, **given)
        found[f"stage 3, {name}"] = trained(trainer)
    settings = arguments(folder / "out", processes, gradient_accumulation_steps=2 if processes == 2 else 1)
    settings.per_device_train_batch_size = 1 if processes == 2 else 4
    found["stage 3, low, accumulated"] = trained(
        MultiGranularityTrainer(made(), settings, stage=STAGE3, memory="low", **given)
    )
    given = {"train_dataset": ChatDataset(SINGLES), "data_collator": collator}
    stage = STAGES[4].with_rates(router=1e-2)
    found["stage 4"] = trained(RGLFTrainer(made(), arguments(folder / "out", processes), stage=stage, **given))
    given = {"train_dataset": ChatDataset(ROWS * 2), "data_collator": collator}  # unequal numbers of images
    given["eval_dataset"] = ChatDataset([*ROWS, ROWS[3]])  # five rows: the last batch is filled up
    settings = arguments(folder / "out", processes, per_device_eval_batch_size=2)
    trainer = RGLFTrainer(made(), settings, stage=stage, **given)
    found["stage 4, uneven"] = trained(trainer)
    found["stage 4, figures"] = (figures(trainer), {})
    store = score(made(), ChatDataset(ROWS * 2), collator, folder / "store", batch_size=2, part_size=2, progress=False)
    found["feedback"] = (store.nll.tolist(), {"visual_tokens": store.visual_tokens})
    return found


def share(data, processes, rank):
    """This process's part of one global batch, and how many answer tokens the whole has."""
    collator, rows = FlexCollator(tiny_llava_next_processor()), [ChatDataset(data)[i] for i in (0, 1, 3, 0)]
    answers = int((collator(rows)["labels"][:, 1:] != -100).sum())
    each = len(rows) // processes
    return collator(rows[rank * each : (rank + 1) * each]), answers


def prepared(flex):
    """As accelerate shards a model on GPUs; on CPUs it would silently use DDP, so its function is called directly."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(flex)
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = plugin
    return fsdp2_prepare_model(accelerator, flex)


def sharded(processes, rank):
    """Stage 3 in all ways and stage 4, under FSDP2: gradients of one global batch, gathered."""
    found = {}
    for name in (*WAYS, *SMALLER, "stage 4"):
        flex = made(name=name)
        batch, answers = share(SINGLES if name == "stage 4" else ROWS, processes, rank)
        if name == "stage 4":
            select(flex, STAGES[4])
            objective = RGLFObjective()
        else:
            select(flex, STAGES[3])
            objective = MultiGranularityObjective(name.split()[-1], backward=lambda loss: (loss * processes).backward())
            batch["num_items_in_batch"] = torch.tensor(answers)
        if processes > 1:
            flex = prepared(flex)
            assert all(isinstance(p, DTensor) for p in flex.parameters())
        output = flex(**batch, objective=objective)
        (output.loss * (processes if name != "stage 4" else 1)).backward()
        gradients = {
            key: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()
            for key, p in flex.named_parameters()
            if p.grad is not None
        }
        loss = output.loss.detach().clone()
        if processes > 1:
            dist.all_reduce(loss)
            loss = loss / (processes if name == "stage 4" else 1)
        found[f"sharded, {name}"] = ([loss.item()], gradients)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    target = Path(sys.argv[1])
    results = data_parallel(target, 2)
    if SHARDS:
        results |= sharded(2, PartialState().process_index)
    if PartialState().is_main_process:
        torch.save(results, target / "results.pt")
    dist.destroy_process_group()
