"""A batch is read once: how often things are looked for, made and copied, counted."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tokenflex
from tests.hosts.served import served
from tests.model.transfers import Transfers
from tokenflex.hosts import grid, placeholders
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.zoo.recipe import AN_IMAGE
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective

HOSTS = ["llava_next", "llava_onevision", "qwen2_5_vl"]
ROW = (1, 2, AN_IMAGE, 3, 4)
LEVEL0 = {"budget": ConstantPolicy.Config(level=0)}
BEFORE = {
    "llava_next": {"finest": 111, "level 0": 155},
    "llava_onevision": {"finest": 130, "level 0": 174},
    "qwen2_5_vl": {"finest": 90, "level 0": 222},
}
"""Operations beyond the host's for one image, when every step of a call read the batch anew."""


def prepared(name, images=1):
    tiny = served(name)
    torch.manual_seed(0)
    flex = tokenflex.wrap(tiny.build()).eval()
    return flex, tiny.batch(flex.host.config, (ROW,) * images)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call):
    with torch.no_grad():
        call()  # what is made once per model or process is made here
        with Operations() as counted:
            call()
    return counted.count


@pytest.fixture
def counted(monkeypatch):
    """How often placeholders are looked for, and levels made."""
    calls = Counter()

    def counting(owner, name):
        plain = getattr(owner, name)

        def wrapper(*args, **kwargs):
            calls[name] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    counting(placeholders, "locate")
    counting(AveragePoolScaler, "scale")
    return calls


@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("name", HOSTS)
def test_a_routed_call_reads_two_things_off_the_device(name, images):
    """What is where, and what was decided; however many images there are."""
    flex, inputs = prepared(name, images)
    for call in (
        lambda: flex.decide(**inputs),
        lambda: flex(**inputs, **LEVEL0),
        lambda: flex.generate(**inputs, **LEVEL0, max_new_tokens=2),
    ):
        with torch.no_grad(), Transfers() as transfers:
            call()
        assert len(transfers.found) == 2, transfers.found


@pytest.mark.parametrize("name", HOSTS)
def test_a_forced_level_reads_one(name):
    flex, inputs = prepared(name, 3)
    with torch.no_grad(), Transfers() as transfers:
        flex(**inputs, level=[0, 2, 4])
    assert len(transfers.found) == 1, transfers.found


def test_what_is_read_is_noticed():
    flex, inputs = prepared("llava_next", 2)
    scores = torch.zeros(2, 5)
    with torch.no_grad(), Transfers() as transfers:
        flex.adapter.read(inputs)
        flex.compressor.require_judged(scores, ())
        assert scores.tolist()  # not the library's
    assert [name for name, _ in transfers.found] == ["cpu", "tolist"], transfers.found


@pytest.mark.parametrize("name", HOSTS)
def test_the_operations_beside_the_hosts_are_half_of_what_they_were(name):
    flex, inputs = prepared(name)
    host = operations(lambda: flex.host(**inputs))
    for label, level in (("finest", -1), ("level 0", 0)):
        extra = operations(lambda level=level: flex(**inputs, level=level)) - host
        assert extra <= BEFORE[name][label] / 2, label


@pytest.mark.parametrize("name", HOSTS)
def test_operations_per_image_stay_few(name):
    one, many = prepared(name), prepared(name, 33)
    own = [operations(lambda each=each: each[0](**each[1], level=0)) for each in (one, many)]
    host = [operations(lambda each=each: each[0].host(**each[1])) for each in (one, many)]
    assert (own[1] - host[1]) - (own[0] - host[0]) <= 32 * 28


@pytest.mark.parametrize("name", HOSTS)
def test_levels_are_made_once_and_placeholders_looked_for_once(name, counted):
    flex, inputs = prepared(name)
    modalities = len(flex.adapter.placeholder_ids)
    flex.generate(**inputs, **LEVEL0, max_new_tokens=2)
    assert counted == {"locate": modalities, "scale": flex.compressor.num_levels}
    counted.clear()
    flex.generate(**inputs, level=1, max_new_tokens=2)
    assert counted == {"locate": modalities, "scale": 1}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("objective", [MultiGranularityObjective(), RGLFObjective()])
def test_so_are_they_in_a_training_step(name, objective, counted):
    flex, inputs = prepared(name)
    flex.requires_grad_(False)
    flex.adapter.parameter_groups()["projector"][0].requires_grad_(isinstance(objective, MultiGranularityObjective))
    flex.compressor.requires_grad_(isinstance(objective, RGLFObjective))
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    flex(**inputs, labels=labels, objective=objective).loss.backward()
    assert counted == {"locate": len(flex.adapter.placeholder_ids), "scale": flex.compressor.num_levels}


def test_the_levels_that_the_router_saw_are_those_that_the_host_gets():
    flex, inputs = prepared("llava_next", 3)
    encoded = flex.encode(inputs)
    fresh = flex.at_levels(inputs, encoded, [0, 2, 4]).inputs["mm_encoder_outputs"]["image"].pooler_output
    flex.decide(**inputs)
    with torch.no_grad():
        flex.scores(encoded)
    encoded.made["judged"] = True
    shared = flex.at_levels(inputs, encoded, [0, 2, 4]).inputs["mm_encoder_outputs"]["image"].pooler_output
    for one, other in zip(fresh, shared, strict=True):
        assert torch.equal(one, other)


def test_the_hosts_positions_are_computed_once_however_often_rows_are_spliced(monkeypatch):
    flex, inputs = prepared("qwen2_5_vl", 4)
    calls, plain = [], grid.full_positions
    monkeypatch.setattr(grid, "full_positions", lambda *args: calls.append(1) or plain(*args))
    encoded = flex.encode(inputs)
    for rows in (None, [0, 2], [1, 3]):
        flex.at_levels(inputs, encoded, [0, 1, 0, 1], rows=rows)
    assert len(calls) == 1
