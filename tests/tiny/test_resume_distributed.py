"""Two processes write one checkpoint: its manifest comes after both have written; a resumed run equals a whole one."""

import json
import os
import signal
import subprocess
import sys

from kill_matrix import contents, write_inputs
from test_resume import SIGNALLER

from pbsd.checkpoints import faults


def torchrun(root, folder, *flags, signal_at=-1, processes=2):
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "SIGNAL_AT": str(signal_at), "SIGNAL": str(int(signal.SIGKILL)),
    }  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    words = [*launcher, "pbsd.cli", "train", str(root / "recipe.yaml"), "--output_dir", str(root / folder), *flags]
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def test_two_processes_write_and_resume_one_checkpoint(tmp_path):
    """Both are killed in step 4; the checkpoint of step 2 holds the random states of both."""
    write_inputs(tmp_path)
    (tmp_path / "signaller.py").write_text(SIGNALLER)
    flags = ["--reward_funcs", "signaller:reward", "--per_device_train_batch_size", "2", "--max_steps", "4"]
    flags += ["--method", "grpo"]
    status, said = torchrun(tmp_path, "whole", *flags)
    assert status == 0, said[-5000:]
    status, said = torchrun(tmp_path, "killed", *flags, signal_at=4)
    assert status != 0 and os.listdir(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoint-2"
    assert faults(checkpoint) == []
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "method_state.pt"} <= listed.keys()

    status, said = torchrun(tmp_path, "killed", *flags, "--resume", processes=1)
    assert status != 0 and "began with other processes" in said and "processes 2 -> 1" in said
    status, said = torchrun(tmp_path, "killed", *flags, "--resume")
    assert status == 0, said[-5000:]
    assert said.count("goes on from checkpoint-2") == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
