"""`torchrun` with two processes takes the same steps as one process with the same prompts, with every method."""

import json
import os
import subprocess
import sys

import pytest

FORMS = {
    "pbsd": {
        "method": "pbsd", "preset": "pairs", "num_teacher_generations": 2, "keep_ties": True, "teacher": "ema",
    },
    "pbsd_projections": {
        "method": "pbsd", "preset": "pairs", "num_teacher_generations": 2, "preference_coef": 0.0, "nll_coef": 0.0,
        "imitation_coef": 1.0, "imitation_from": "union", "imitation_weights": "exact", "imitation_prompts": "failing",
        "direct_coef": 1.0, "group_coef": 1.0,
    },
    "pbsd_mixed": {"method": "pbsd", "num_teacher_generations": 2, "success_threshold": 0.5},
    "opsd": {"method": "opsd", "temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "sdft": {"method": "sdft", "distillation_topk": 5},
    "sdpo": {"method": "sdpo", "success_threshold": 0.1},
    "grpo": {"method": "grpo", "scale_rewards": "batch", "beta": 0.1},
    "online_dpo": {"method": "online_dpo"},
    "rft": {"method": "rft", "rft_source": "both", "num_teacher_generations": 2, "success_threshold": 0.1},
    "sft": {"method": "sft"},
}  # fmt: skip

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import json, os, torch
torch.set_num_threads(1)
from conftest import ROWS, build_tokenizer, lower_case_share, tiny_model
from transformers import PrinterCallback
from pbsd.api import SelfDistillationTrainer
from pbsd.methods import METHODS
from pbsd.run import leave_process_group

processes = int(os.environ.get("WORLD_SIZE", 1))
tokenizer = build_tokenizer()
found = {{}}
for name, options in {forms!r}.items():
    config = METHODS[options.pop("method")][0](
        output_dir={out!r}, max_steps=3, per_device_train_batch_size=4 // processes, max_completion_length=6,
        num_generations=2, num_generations_eval=2, learning_rate=1e-3, use_cpu=True, save_strategy="no",
        disable_tqdm=True, **options,
    )
    trainer = SelfDistillationTrainer(tiny_model(tokenizer), config, ROWS, ROWS[:5], lower_case_share, tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found[name] = {{
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "weights": torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()]).tolist(),
        "accuracy": trainer.measure_accuracy().to_json(),
    }}
if trainer.is_world_process_zero():
    json.dump(found, open({out!r} + ".json", "w"))
leave_process_group()
"""


def run(tests, out, *launcher):
    script = out.with_suffix(".py")
    script.write_text(SCRIPT.format(tests=str(tests), out=str(out), forms=FORMS))
    # The loopback interface by name: what a machine's own host name resolves to is not this test's matter.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()[-8000:]
    return json.loads(out.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    tests, folder = request.config.rootpath / "tests", tmp_path_factory.mktemp("runs")
    one = run(tests, folder / "one")
    # --standalone: torchrun itself picks a port and keeps it; a port found free beforehand may be taken by then.
    two = run(tests, folder / "two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return one, two


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(runs, form):
    one, two = (found[form] for found in runs)
    # A hundredth of a step: Adam makes much of rounding where a gradient is near its epsilon.
    assert two["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert two["accuracy"] == one["accuracy"]
    assert len(two["logs"]) == 3
    assert any(entry["grad_norm"] > 0 for entry in one["logs"])
    for first, second in zip(one["logs"], two["logs"], strict=True):
        for key in ("loss", "grad_norm", "reward/student", "pairs/kept", "pairs/margin", "tokens/generated_total"):
            if key in first:
                assert second[key] == pytest.approx(first[key], abs=1e-5), key
