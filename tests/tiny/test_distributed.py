"""`torchrun` with two processes takes the same step as one process with the same prompts."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import json, os, torch
torch.set_num_threads(1)
from conftest import ROWS, build_tokenizer, contains_answer, tiny_model
from transformers import PrinterCallback
from pbsd import PBSDConfig, PBSDTrainer
from pbsd.run import leave_process_group

processes = int(os.environ.get("WORLD_SIZE", 1))
tokenizer = build_tokenizer()
trainer = PBSDTrainer(
    tiny_model(tokenizer),
    PBSDConfig(
        output_dir={out!r}, max_steps=3, per_device_train_batch_size=4 // processes, max_completion_length=6,
        num_generations=2, num_teacher_generations=2, num_generations_eval=2, learning_rate=1e-3, use_cpu=True,
        save_strategy="no", disable_tqdm=True, pair_policy="oriented", keep_ties=True, teacher="ema",
    ),
    ROWS, ROWS[:5], contains_answer, tokenizer,
)
trainer.remove_callback(PrinterCallback)
trainer.train()
accuracy = trainer.measure_accuracy().to_json()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()]).tolist()
    json.dump({{"logs": logs, "weights": weights, "accuracy": accuracy}}, open({out!r} + ".json", "w"))
leave_process_group()
"""


def run(tests, out, *launcher):
    script = out.with_suffix(".py")
    script.write_text(SCRIPT.format(tests=str(tests), out=str(out)))
    # The loopback interface by name: what a machine's own host name resolves to is not this test's matter.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()[-8000:]
    return json.loads(out.with_suffix(".json").read_text())


def test_two_processes_equal_one(tmp_path, request):
    tests = request.config.rootpath / "tests"
    one = run(tests, tmp_path / "one")
    # --standalone: torchrun itself picks a port and keeps it; a port found free beforehand may be taken by then.
    two = run(tests, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert two["weights"] == pytest.approx(one["weights"], abs=2e-6)
    assert two["accuracy"] == one["accuracy"]
    assert len(two["logs"]) == 3
    for first, second in zip(one["logs"], two["logs"], strict=True):
        for key in ("loss", "grad_norm", "reward/student", "pairs/kept", "pairs/margin", "tokens/generated_total"):
            assert second[key] == pytest.approx(first[key], abs=1e-5), key
