"""Kill a run at every window between two things that it does to its files, resume it, and compare.

A forked child runs `pbsd train` and kills itself before its n-th change of a file under the run folder: Python's own
audit events (`open` for writing, rename, remove, mkdir, rmdir) and the two writers that are not Python's, `torch.save`
and safetensors. No clock and no chance: n counts through all windows.

    python tests/tiny/kill_matrix.py [FORM ...]     # every window of every form; minutes
"""

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import peft  # noqa: F401 (loaded before the fork)
import safetensors.torch
import torch

import pbsd.run  # noqa: F401
from pbsd.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}

FORMS = {
    "pbsd_lora_ema": ["--teacher", "ema", "--ema_decay", "0.9", "--use_peft", "--lora_target_modules", "q_proj"],
    "grpo": ["--method", "grpo", "--beta", "0.1"],
    "sdpo": ["--method", "sdpo", "--success_threshold", "0.1"],
    "evaluating": ["--eval_strategy", "epoch", "--save_total_limit", "1", "--dataset_train_size", "8"],
    "save_only_model": ["--save_only_model"],
}
"""Flags beside those of `recipe`. Of `evaluating` an epoch has two steps, so each ends where a checkpoint is saved."""

RECIPE = """
model_name_or_path: {folder}/model
dataset_name: {folder}/data
reward_funcs: ["light_rewards:lower_case_share"]
max_steps: 3
num_train_epochs: 9
per_device_train_batch_size: 4
max_completion_length: 6
num_generations: 2
num_generations_eval: 2
learning_rate: 1.0e-3
lr_scheduler_type: cosine
save_steps: 2
save_total_limit: 2
use_cpu: true
disable_tqdm: true
num_threads: 1
"""


class Killer:
    """Counts changes of files under a folder in this process, and kills it before change `at`."""

    def __init__(self, folder, at=None):
        self.folder, self.at, self.seen = str(folder), at, []
        sys.addaudithook(self._hook)
        for module, name in ((torch, "save"), (safetensors.torch, "serialize_file")):
            setattr(module, name, self._watched(getattr(module, name), name))

    def _hook(self, event, args):
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | os.PathLike) and (flags & (os.O_WRONLY | os.O_RDWR)):
                self._count(event, path)
        elif event in CHANGES and not (event == "os.mkdir" and os.path.isdir(args[0])):
            within = args[-1] if event in ("os.remove", "os.rmdir") else -1
            self._count(event, args[0] if within < 0 else os.path.join(os.readlink(f"/proc/self/fd/{within}"), args[0]))

    def _watched(self, function, name):
        def watched(*args, **kwargs):
            target = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, str | os.PathLike))
            self._count(name, target)
            function(*args, **kwargs)
            # Its bytes are on their way while it writes: half of the file is what a kill then leaves.
            if self._count(f"half of {name}", target, kill=False):
                os.truncate(target, os.path.getsize(target) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return watched

    def _count(self, what, path, kill=True):
        place = os.path.abspath(path)
        if place != self.folder and not place.startswith(f"{self.folder}/"):
            return False
        self.seen.append(f"{what} {place[len(self.folder) :]}")
        due = len(self.seen) == self.at
        if due and kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return due


@contextmanager
def quiet(path):
    with open(path, "w") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def train(root, name, flags, *, at=None):
    """Run `pbsd train` in a forked child. Returns its exit status (-9: killed), what it said, and the changes it made
    under the run folder."""
    said, changes = root / f"{name}.txt", root / f"{name}.json"
    changes.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            killer = Killer(root / name, at)
            with quiet(said):
                status = main(["train", str(root / "recipe.yaml"), "--output_dir", str(root / name), *flags])
            with open(changes, "w") as file:
                json.dump(killer.seen, file)
        except BaseException:
            with open(said, "a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    made = json.loads(changes.read_text()) if changes.is_file() else []
    return os.waitstatus_to_exitcode(status), said.read_text() if said.is_file() else "", made


def contents(folder):
    """Everything of a run that must be equal, file by file: not clocks, places, and which session did what."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name in ("manifest.json", "training_args.bin", "config.yaml", "README.md"):
            continue
        if path.suffix in (".pt", ".pth"):
            found[name] = _plain(torch.load(path, weights_only=False))
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [_without_clocks(json.loads(line), folder) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def _plain(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if hasattr(value, "tobytes"):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "train_seconds"}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


CLOCKS = ("time/", "seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime")


def _without_clocks(value, folder):
    if isinstance(value, dict):
        return {key: _without_clocks(item, folder) for key, item in value.items() if not str(key).startswith(CLOCKS)}
    if isinstance(value, list):
        return [_without_clocks(item, folder) for item in value]
    return value.replace(str(folder), "") if isinstance(value, str) else value


def differences(one, other):
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def kill_and_resume(root, flags, whole, at):
    """Returns what went wrong, or None; and the window. The run is finished by --resume, or begun again where that is
    refused."""
    shutil.rmtree(root / "killed", ignore_errors=True)
    status, said, _ = train(root, "killed", flags, at=at)
    if status != -signal.SIGKILL:
        return f"was not killed ({status}): {said}"
    status, said, _ = train(root, "killed", [*flags, "--resume"])
    if status == 2 and "--save_only_model" in flags and "save_only_model" in said:
        status, said, _ = train(root, "killed", flags)
    if status != 0:
        return f"ended with {status}: {said}"
    if not any(words in said for words in ("starts from the beginning", "goes on from checkpoint-", "nothing is done")):
        return f"does not say how it begins: {said}"
    wrong = differences(whole, contents(root / "killed"))
    return f"differs in {', '.join(wrong)}" if wrong else None


def write_inputs(root):
    from conftest import CHAT_TEMPLATE, HELD_OUT, ROWS, build_tokenizer, tiny_model

    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tiny_model(tokenizer).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "data").mkdir()
    for split, rows in (("train", ROWS), ("test", HELD_OUT)):
        (root / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "recipe.yaml").write_text(RECIPE.format(folder=root))


def matrix(root, form, *, first=1, stride=1):
    """Yields (window, what went wrong or None) for every `stride`-th window of a form."""
    flags = FORMS[form]
    gc.freeze()  # a child's collections pass over what its parent has loaded
    status, said, windows = train(root, "whole", flags)
    assert status == 0, said
    whole = contents(root / "whole")
    for at in range(first, len(windows) + 1, stride):
        yield f"{at}/{len(windows)} {windows[at - 1]}", kill_and_resume(root, flags, whole, at)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    failed = 0
    for form in sys.argv[1:] or FORMS:
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(Path(folder))
            for window, wrong in matrix(Path(folder), form):
                failed += wrong is not None
                print(f"{form}: {window}: {wrong or 'equal'}", flush=True)
    sys.exit(f"{failed} windows failed" if failed else 0)
