"""``transformers serve``, unmodified, answers with a saved FlexModel."""

import base64
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

import tokenflex
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

for needed in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="transformers serve needs transformers[serving]")

SERVED = """
import json, sys
import uvicorn
from starlette.testclient import TestClient
from transformers.cli.serve import Serve
uvicorn.Server.run = lambda server: None  # its app is asked below, without a port
served = Serve(force_model=sys.argv[1], device="cpu", trust_remote_code=True)
with TestClient(served.server.config.app) as client:
    answer = client.post("/v1/chat/completions", json=json.load(sys.stdin))
    print(json.dumps(answer.json()))
"""


def image():
    kept = io.BytesIO()
    Image.new("RGB", (40, 30), "orange").save(kept, "PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def test_a_saved_model_is_served_without_importing_anything(tmp_path):
    torch.manual_seed(0)
    host, processor = tiny_llava_next(), tiny_llava_next_processor()
    flex = tokenflex.wrap(host, policy=ConstantPolicy.Config(level=0))
    flex.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    content = [{"type": "image_url", "image_url": {"url": image()}}, {"type": "text", "text": "w1 w2"}]
    asked = {"model": str(tmp_path / "model"), "messages": [{"role": "user", "content": content}], "max_tokens": 4,
             "temperature": 0, "stream": False}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SERVED, asked["model"]], input=json.dumps(asked), capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 30), "orange")}, content[1]]}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    prompt = inputs["input_ids"].shape[1]
    told = {level: processor.decode(flex.generate(**inputs, level=level, max_new_tokens=4)[0, prompt:],
                                    skip_special_tokens=True) for level in (0, "finest")}  # fmt: skip
    assert answer["choices"][0]["message"]["content"].strip() == told[0].strip()
    assert told[0] != told["finest"]
