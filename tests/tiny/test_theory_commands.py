"""`pbsd pilot`, `pbsd advise` and `pbsd theory`, as a person would see them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from pbsd.advise import read_pilot
from pbsd.cli import main
from pbsd.scoring import ScoringGroup, score


def test_pilot_writes_the_scores_of_fresh_samples(recipe, tmp_path, make_trainer, capsys):
    """Each pair's log-probabilities are those of its tokens under the prompt of each role."""
    out = tmp_path / "pairs.jsonl"
    assert main(["pilot", str(recipe), "--out", str(out), "-n", "6"]) == 0
    assert "12 pairs" in (out_text := capsys.readouterr().out) and "speaks of" not in out_text
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["prompt"] for record in records] == sorted(2 * list(range(6)))
    trainer = make_trainer()
    for record in records[:4]:
        prompt = trainer.train_dataset[record["prompt"]]
        for side in ("chosen", "rejected"):
            ids = tuple(record[f"completion_ids_{side}"])
            for role in ("student", "teacher"):
                group = ScoringGroup(prompt.ids(role), (ids,))
                found = score(trainer.engine.student, [group], pad_id=0).sequence_logprobs_B.item()
                assert record[f"{role}_logprob_{side}"] == pytest.approx(found, abs=1e-4)
    pilot, left_out = read_pilot(out)
    assert (pilot.prompts, len(pilot.prompt_N), left_out) == (6, 12, 0)


def test_advice_is_refused_from_the_tiny_pilot(recipe, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    assert main(["pilot", str(recipe), "--out", str(out)]) == 0
    assert main(["advise", "--self", str(out), "--external", str(out)]) == 2
    assert "the self pilot has 16 prompts; an interval over prompts needs at least 20" in capsys.readouterr().err


def write_pilot(path, lead, *, features=False, prompts=40, pairs=4, seed=0):
    """Pairs of a world of six completions whose teacher is moved along the reward by `lead`."""
    rng = np.random.default_rng(seed)
    reward, student = np.linspace(-1, 1, 6), np.log(np.full(6, 1 / 6))
    teacher = np.log(softmax(student + lead * reward))
    lines = []
    for prompt in range(prompts):
        for _ in range(pairs):
            y = {"chosen": rng.choice(6, p=np.exp(teacher)), "rejected": rng.choice(6, p=np.exp(student))}
            record = {"prompt": f"p{prompt}"}
            for side, k in y.items():
                record |= {
                    f"student_logprob_{side}": student[k],
                    f"teacher_logprob_{side}": teacher[k],
                    f"reward_{side}": reward[k],
                }
                if features:
                    record[f"features_{side}"] = [float(k), float(k % 2)]
            lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("features", [True, False])
def test_advice_recommends_explains_and_writes(tmp_path, capsys, features):
    own = write_pilot(tmp_path / "self.jsonl", 0.2, features=features)
    external = write_pilot(tmp_path / "external.jsonl", 3.0, features=features, seed=1)
    out = tmp_path / "advice.json"
    flags = [] if features else ["--dimension", "2"]
    arguments = ["advise", "--self", own, "--external", external, "--beta", "0.5", "--budget", "50000"]
    assert main([*arguments, "--out", str(out), *flags]) == 0
    screen = capsys.readouterr().out
    assert "For 50000 pairs: the external-teacher, confidence 1" in screen
    assert "KL(T || student), nats" in screen and "E[sigmoid'(m)] at target" in screen
    report = json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert report["advice"]["recommendation"] == "external"
    assert report["pilots"]["self"] == {"prompts": 40, "pairs": 160, "left_out_without_reward": 0}
    figure = report["figures"]["external"]["reward_gap"]
    assert figure["low"] < figure["value"] < figure["high"]


def test_advice_without_a_dimension_may_depend(tmp_path, capsys):
    """The external samples are so much better that their labels say nothing: a better target, but a dearer one."""
    rng = np.random.default_rng(0)
    for name, lead in (("self", 0.3), ("external", 8.0)):
        lines = []
        for prompt in range(120):
            logs, reward = rng.uniform(-50, -40, size=2), rng.normal()
            lines.append(
                {"prompt": prompt // 4, "reward_chosen": reward + lead, "reward_rejected": reward}
                | {f"student_logprob_{side}": log for side, log in zip(("chosen", "rejected"), logs, strict=True)}
                | {f"teacher_logprob_{side}": log for side, log in zip(("chosen", "rejected"), logs, strict=True)}
            )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ["--self", str(tmp_path / "self.jsonl"), "--external", str(tmp_path / "external.jsonl")]
    assert main(["advise", *files, "--beta", "0.5"]) == 0
    screen = capsys.readouterr().out
    assert "no recommendation" in screen and "give the dimension, or features, to decide" in screen


def test_pairs_without_a_reward_are_counted(tmp_path, capsys):
    own = write_pilot(tmp_path / "self.jsonl", 0.2)
    lines = Path(own).read_text().splitlines()
    for index in (0, 4, 8):
        lines[index] = json.dumps(json.loads(lines[index]) | {"reward_chosen": None})
    (tmp_path / "holes.jsonl").write_text("\n".join(lines))
    pilot, left_out = read_pilot(tmp_path / "holes.jsonl")
    assert (left_out, len(pilot.prompt_N)) == (3, 157)
    assert main(["advise", "--self", str(tmp_path / "holes.jsonl"), "--external", own, "--dimension", "2"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "left out, no reward" in line)
    assert "3" in row and "0" in row


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward_chosen": "high"}, "line 2: reward_chosen must be a finite number below 1e100, got 'high'"),
        ({"reward_chosen": True}, "must be a finite number below 1e100, got True"),
        ({"teacher_logprob_rejected": math.nan}, "teacher_logprob_rejected must be a finite number"),
        ({"reward_chosen": 10**400}, "reward_chosen must be a finite number below 1e100"),
        ({"student_logprob_chosen": 2.0}, "student_logprob_chosen is 2.0; a log-probability is not above 0"),
        ({"features_chosen": [1.0]}, "features_rejected must be a list of finite numbers"),
        ({"features_chosen": [1.0], "features_rejected": [2.0]}, "features of one length, or none"),
        (None, "missing prompt"),
        ("[1]", "must be a JSON object, got list"),
        ("{", "line 2: not JSON"),
    ],
)
def test_bad_pairs_are_named(tmp_path, capsys, change, words):
    path = write_pilot(tmp_path / "pairs.jsonl", 0.2)
    lines = Path(path).read_text().splitlines()
    if isinstance(change, str):
        lines[1] = change
    else:
        record = json.loads(lines[1])
        lines[1] = json.dumps(
            {key: record[key] for key in record if key != "prompt"} if change is None else record | change
        )
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert main(["advise", "--self", path, "--external", path]) == 2
    assert words in capsys.readouterr().err


def test_missing_and_empty_files(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, words in (("nowhere.jsonl", "nowhere.jsonl"), ("empty.jsonl", "has no pair")):
        assert main(["advise", "--self", str(tmp_path / name), "--external", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--budget", "0"], ["--beta", "-1"], ["--budgte", "5"], ["--yardstick", "x"]])
def test_bad_flags_are_refused(tmp_path, capsys, flags):
    with pytest.raises(SystemExit):
        main(["advise", "--self", "a", "--external", "b", *flags])
    assert flags[0] in capsys.readouterr().err


def test_crossover_prints_and_writes(tmp_path, capsys):
    assert main(["theory", "crossover", "--advantage", "0.05", "--overlap", "0.2", "--out", str(tmp_path)]) == 0
    screen = capsys.readouterr().out
    table = json.loads((tmp_path / "crossover.json").read_text())
    assert f"Up to n* = {table['predicted']:.4g} labelled pairs the self-teacher is preferable" in screen
    assert table["predicted"] == pytest.approx((table["external"]["constant"] - table["self"]["constant"]) / 0.05)
    assert table["self"]["bias"] - table["external"]["bias"] == pytest.approx(0.05)
    assert table["simulated"]["sample_size"] == pytest.approx(table["predicted"], rel=0.2)
    assert (tmp_path / "crossover.png").stat().st_size > 10_000


def test_equal_targets_and_crossings_that_never_come(capsys):
    assert main(["theory", "crossover", "--advantage", "0", "--overlap", "0.2"]) == 0
    assert "The self-teacher is preferable at every number of pairs" in capsys.readouterr().out
    assert main(["theory", "crossover", "--advantage", "0.2", "--overlap", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "Simulated: no crossing" in out and "nan" not in out


@pytest.mark.parametrize("dimension", ["1", "8"])
def test_dimensions_out_of_range_are_refused(capsys, dimension):
    with pytest.raises(SystemExit):
        main(["theory", "crossover", "--advantage", "0.1", "--overlap", "0.2", "--dimension", dimension])
    assert "--dimension" in capsys.readouterr().err


def test_an_advantage_out_of_reach_is_an_error(capsys):
    assert main(["theory", "crossover", "--advantage", "50", "--overlap", "0.2"]) == 2
    assert "advantage must lie between" in capsys.readouterr().err


def test_phase_diagram_writes_a_table_and_a_picture(tmp_path, capsys):
    assert main(["theory", "phase-diagram", "--out", str(tmp_path / "new")]) == 0
    table = json.loads((tmp_path / "new" / "phase_diagram.json").read_text())
    planes = np.array(table["external_minus_self"], dtype=float)
    assert planes.shape == (4, len(table["overlap"]), len(table["advantage"]))
    # Where the external target is worth less and costs more, the self-teacher is preferable at every n.
    assert (planes[:, 0, 0] > 0).all()
    decided = [p for p in table["simulated"] if abs(p["external_minus_self"]) > 4 * p["error"]]
    assert len(decided) > 40 and all(p["external_minus_self"] * p["predicted"] > 0 for p in decided)
    assert (tmp_path / "new" / "phase_diagram.png").stat().st_size > 10_000
    assert "have the predicted sign" in capsys.readouterr().out
