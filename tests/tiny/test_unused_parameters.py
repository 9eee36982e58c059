"""DDP searches every forward pass for parameters without gradient only where there are any, or where it is told to."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn

from pbsd.loop import unused_parameters
from pbsd.scoring import enable_scoring

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import json, torch
torch.set_num_threads(1)
from conftest import ROWS, build_tokenizer, lower_case_share, tiny_model
from pbsd.api import SelfDistillationTrainer
from pbsd import PBSDConfig
from pbsd.run import leave_process_group

tokenizer, found = build_tokenizer(), {{}}
for name, spare, option in (("default", False, None), ("kept", False, True), ("spare", True, None)):
    model = tiny_model(tokenizer)
    if spare:
        model.spare = torch.nn.Linear(2, 2)
    config = PBSDConfig(
        output_dir={out!r}, max_steps=2, per_device_train_batch_size=2, max_completion_length=6, num_generations=2,
        num_teacher_generations=2, preset="pairs", learning_rate=1e-3, use_cpu=True, save_strategy="no",
        disable_tqdm=True, ddp_find_unused_parameters=option,
    )
    trainer = SelfDistillationTrainer(model, config, ROWS, None, lower_case_share, tokenizer)
    trainer.train()
    weights = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "spare" not in n])
    found[name] = [trainer.model_wrapped.find_unused_parameters, weights.tolist()]
if trainer.is_world_process_zero():
    json.dump(found, open({out!r} + ".json", "w"))
leave_process_group()
"""


def test_two_processes(tmp_path, request):
    """Off by itself, on where the user says so and where a parameter is unused (which DDP would refuse without the
    search); the steps are the same."""
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT.format(tests=str(request.config.rootpath / "tests"), out=str(out)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()[-5000:]
    found = json.loads(out.with_suffix(".json").read_text())
    assert {name: searches for name, (searches, _) in found.items()} == {"default": False, "kept": True, "spare": True}
    for name in ("kept", "spare"):
        assert found[name][1] == pytest.approx(found["default"][1], abs=1e-6)


def test_what_is_unused_is_named(tokenizer):
    model = tiny_model(tokenizer)
    enable_scoring(model)
    assert unused_parameters(model, 0) == []
    model.spare = nn.Linear(2, 2)
    assert unused_parameters(model, 0) == ["spare.weight", "spare.bias"]
    model.spare.requires_grad_(False)
    assert unused_parameters(model, 0) == []


def test_of_an_adapter(tokenizer):
    model = get_peft_model(tiny_model(tokenizer), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    enable_scoring(model)
    assert unused_parameters(model, 0) == []
    model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert {name.split(".")[-2] for name in unused_parameters(model, 0)} == {"second"}


def test_experts_that_one_token_does_not_reach_count_as_unused(tokenizer):
    """Modules of their own, of which a token takes one: another batch may leave out others."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

        def forward(self, hidden):
            choice = hidden.sum(-1).argsort(-1)[..., :1] % 3
            taken = {int(index) for index in choice.flatten()}
            return sum(self.experts[index](hidden) for index in taken)

    torch.manual_seed(0)
    model = tiny_model(tokenizer)
    model.model.layers[0].mlp = Experts()
    enable_scoring(model)
    assert len(unused_parameters(model, 0)) == 4
