"""A run killed between any two changes of its files, then resumed, equals one that was left alone, file by file.

Here every fifteenth window of each form, from another first one; `python tests/tiny/kill_matrix.py` goes through all.
"""

import pytest
from kill_matrix import FORMS, contents, matrix, train, write_inputs

STRIDE = 15


@pytest.fixture
def root(tmp_path):
    write_inputs(tmp_path)
    return tmp_path


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.mark.parametrize("form", FORMS)
def test_killed_and_resumed_equals_whole(root, form):
    found = dict(matrix(root, form, first=1 + 3 * list(FORMS).index(form), stride=STRIDE))
    assert len(found) >= 4
    assert not {window: wrong for window, wrong in found.items() if wrong}
    # And a finished run is left as it is, to the byte and the minute.
    before = files(root / "whole")
    status, said, changes = train(root, "whole", [*FORMS[form], "--resume"])
    assert (status, changes) == (0, []) and "the run is finished, so nothing is done" in said
    assert files(root / "whole") == before


def test_the_matrix_would_see_a_difference(root):
    """The negative control: another learning rate gives other files, and which ones is said."""
    assert (
        train(root, "one", FORMS["grpo"])[0]
        == train(root, "other", [*FORMS["grpo"], "--learning_rate", "2e-3"])[0]
        == 0
    )
    one, other = contents(root / "one"), contents(root / "other")
    assert one.keys() == other.keys()
    assert {"model/model.safetensors", "metrics.jsonl", "checkpoint-3/optimizer.pt"} <= {
        name for name in one if one[name] != other[name]
    }


@pytest.mark.parametrize("last", [2, 3])
def test_killed_at_the_end_trains_no_step_more(root, last):
    """Between the last checkpoint and summary.json, with the end in the middle of an epoch of four steps and, with
    rows for two steps, at an epoch's end."""
    flags = ["--method", "sft", "--max_steps", str(last), *(["--dataset_train_size", "8"] if last == 2 else [])]
    status, said, windows = train(root, "whole", flags)
    assert status == 0, said
    at = next(number for number, window in enumerate(windows, 1) if window.endswith("/model"))
    train(root, "killed", flags, at=at)
    status, said, _ = train(root, "killed", [*flags, "--resume"])
    assert status == 0 and f"goes on from checkpoint-{last}" in said
    assert contents(root / "killed") == contents(root / "whole")


def test_an_epochs_end_is_measured_once(root):
    """Saved at the end of a step, killed before the measurement at the end of the epoch, or after it."""
    flags = [*FORMS["evaluating"], "--method", "sft", "--max_steps", "4", "--eval_on_start"]
    status, said, windows = train(root, "whole", flags)
    assert status == 0, said
    whole = contents(root / "whole")
    assert [line["step"] for line in whole["metrics.jsonl"] if "eval_accuracy" in line] == [0, 2, 4]
    saved = [number for number, window in enumerate(windows, 1) if window == "os.rmdir /_saving"]
    for at in (saved[0] + 1, saved[0] + 2, saved[1] + 4):
        train(root, "killed", flags, at=at)
        status, said, _ = train(root, "killed", [*flags, "--resume"])
        assert status == 0, said
        assert contents(root / "killed") == whole, windows[at - 1]
