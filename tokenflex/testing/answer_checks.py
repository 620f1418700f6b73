"""The laws that training relies on: logits at answer positions only, and rows packed into one."""

import torch
import torch.nn.functional as F

from tokenflex.hosts.packed import pack
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.hosts.targets import shifted, target_logits
from tokenflex.testing.bench import Skip
from tokenflex.testing.host_bench import FINEST, LEVELS, HostBench, close, labels_of


def answers_only(bench: HostBench) -> None:
    """Against the plain host's full logits and its loss."""
    inputs = bench.batch(side="right")
    labels = labels_of(inputs)
    expected = bench.plainly(lambda: bench.host(**inputs, labels=labels).loss)
    shortened = bench.shortened({**inputs, "labels": labels}, FINEST).inputs
    targets = shifted(shortened.pop("labels"))
    predicts = targets != IGNORE
    logits = target_logits(bench.host, shortened, predicts)
    close(logits, bench.host(**shortened).logits[predicts], "answer positions")
    found = F.cross_entropy(logits.float(), targets[predicts])
    assert torch.allclose(found, expected, rtol=1e-5), f"the loss is {found.item()}, the plain host's {expected.item()}"


def packed_rows_keep_apart(bench: HostBench) -> None:
    """Every row at three levels, all in one packed row, against each batch by itself."""
    reason = bench.adapter.packing_refusal
    if reason:
        raise Skip(reason)
    inputs = bench.batch(side="right")
    batches = [bench.shortened({**inputs, "labels": labels_of(inputs)}, level).inputs for level in sorted(LEVELS)]
    packed = pack(bench.adapter, batches)
    targets = shifted(packed.pop("labels"))
    found = bench.host(**packed).logits[targets != IGNORE]
    expected, kept = [], []
    for batch in batches:
        aims = shifted(batch["labels"])
        logits = bench.host(**{key: value for key, value in batch.items() if key != "labels"}).logits
        expected.append(logits[aims != IGNORE])
        kept.append(aims[aims != IGNORE])
    assert torch.equal(targets[targets != IGNORE], torch.cat(kept)), "packing changed which tokens are answers"
    close(found, torch.cat(expected), "packed and by themselves")
