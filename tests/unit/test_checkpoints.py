"""Checkpoint folders: whole or not there, damage named file by file, rotation by step."""

import json
import os
from pathlib import Path

import pytest

from pbsd import checkpoints
from pbsd.checkpoints import by_step, faults, newest_whole, publish, require_whole, rotate, seal, set_aside

CONTENT = {
    "model.safetensors": b"weights", "optimizer.pt": b"moments", "scheduler.pt": b"rate", "method_state.pt": b"teacher",
    "trainer_state.json": b'{"step": 3}\n', "rng_state.pth": b"dice", "adapter/config.json": b"{}",
}  # fmt: skip


def write(checkpoint: Path, content=CONTENT, made_of=None):
    for name, data in content.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(data)
    seal(checkpoint, made_of)
    return checkpoint


def flipped(data: bytes, bit: int = 11) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*CONTENT, "manifest.json"])
def test_damage_is_named(tmp_path, name, damage):
    older, checkpoint = write(tmp_path / "checkpoint-2"), write(tmp_path / "checkpoint-4", made_of={"seed": 1})
    assert faults(checkpoint) == [] == faults(older)
    DAMAGE[damage](checkpoint / name)
    assert len(wrong := faults(checkpoint)) == 1
    assert wrong[0].startswith(name) and ("missing" if damage == "missing" else "damaged") in wrong[0]
    found, damaged = newest_whole(tmp_path)
    assert found == older and damaged == {checkpoint: wrong}
    with pytest.raises(ValueError, match=f"{checkpoint}: {name} .*the newest whole one is {older}"):
        require_whole(checkpoint)


def test_every_bit_of_a_manifest_counts(tmp_path):
    """A flip is damage, or leaves what the manifest says as it was (white space)."""
    checkpoint = write(tmp_path / "checkpoint-4", {"optimizer.pt": b"x"}, {"lr": 1e-3})
    path = checkpoint / "manifest.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        if not faults(checkpoint, to_resume=False):
            assert json.loads(path.read_bytes()) == content


def test_weights_alone_are_not_enough_to_resume(tmp_path):
    checkpoint = write(tmp_path / "checkpoint-4", {"model.safetensors": b"x", "trainer_state.json": b"{}"})
    assert faults(checkpoint, to_resume=False) == []
    with pytest.raises(ValueError, match=r"without optimizer.pt, scheduler.pt, method_state.pt: with save_only_model"):
        require_whole(checkpoint)


def test_a_checkpoint_without_manifest_can_be_accepted_by_hand(tmp_path):
    checkpoint = write(tmp_path / "checkpoint-4")
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(ValueError, match="an earlier version") as error:
        require_whole(checkpoint)
    code = str(error.value).partition("python -c '")[2].partition("'")[0]
    exec(code, {})
    assert newest_whole(tmp_path) == (checkpoint, {}) and checkpoints.made_of(checkpoint) is None


def test_rotation_goes_by_step_whatever_the_clock_says(tmp_path):
    for step, hours in ((9, 5), (10, 4), (100, 3), (200, 9)):
        os.utime(write(tmp_path / f"checkpoint-{step}"), (3600 * hours, 3600 * hours))
    rotate(tmp_path, 2, step=100, best=None)
    assert list(by_step(tmp_path)) == [10, 100, 200]  # 200 is another run's: it neither counts nor goes
    rotate(tmp_path, 1, step=100, best=str(tmp_path / "checkpoint-10"))
    assert list(by_step(tmp_path)) == [10, 100, 200]
    rotate(tmp_path, None, step=200, best=None)
    rotate(tmp_path, 1, step=200, best=None)
    assert list(by_step(tmp_path)) == [200] and os.listdir(tmp_path) == ["checkpoint-200"]


def test_what_looks_like_a_checkpoint_and_is_none(tmp_path):
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-3.bak", "damaged-checkpoint-4"):
        write(tmp_path / name)
    (tmp_path / "checkpoint-7").write_text("a file")
    assert by_step(tmp_path) == {} and newest_whole(tmp_path) == (None, {})


def test_publishing_replaces_and_setting_aside_hides(tmp_path):
    old, saved = write(tmp_path / "checkpoint-4"), write(tmp_path / "_saving" / "checkpoint-4", {"new": b"1"})
    publish(saved, old)
    assert (old / "new").is_file() and not (old / "optimizer.pt").exists()
    assert set_aside(old).name == "damaged-checkpoint-4" and by_step(tmp_path) == {}
    write(tmp_path / "checkpoint-4")
    assert (set_aside(old) / "optimizer.pt").is_file()
