"""What is asked, as the processor takes it in."""

import pytest
import torch

from tests.conftest import image
from tests.test_chat import processor
from tokenflex.profiling.requests import Requests
from tokenflex.testing.tiny_hosts import TEMPLATE


@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }} " + TEMPLATE])
def test_one_beginning_of_sequence(template):
    requests = Requests([image(0)], ["w1", "w2 w3"])
    batch = requests.batch(processor(template), 2, device=torch.device("cpu"), dtype=torch.float32)
    assert (batch["input_ids"] == 1).sum(-1).tolist() == [1, 1]
