"""How the base models are built: examples, training, the stop rule, what is kept."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from jinja2 import Template
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pbsd.lab import base_model, checkpoint_path, is_packaged
from pbsd.lab.base_model import BuildError, build_base, build_tokenizer
from pbsd.lab.bases import BASES, Band, StopRule
from pbsd.lab.commands import run
from pbsd.lab.tiny_model import new_model, success_rate
from pbsd.lab.worlds import TASKS

NAME = "arithmetic-0.2m"
arithmetic = TASKS["arithmetic"]


def examples(base, step=0, rows=1):
    tokenizer = build_tokenizer(TASKS[base.task].WORDS)
    base = replace(base, student_rows=rows, teacher_rows=rows)
    pool = TASKS[base.task].rows("train", rows)
    found = base_model._examples(base, 0, step, tokenizer, pool)
    return pool, [(tokenizer.decode(prompt), tokenizer.decode(completion)) for prompt, completion in found]


@pytest.mark.parametrize("task", ["arithmetic", "tools"])
@pytest.mark.parametrize("form", ["solution", "flawed", "slip", "answer", "leaking"])
def test_examples_of_each_form(task, form):
    """Who is right: both; the completion; the context; the completion alone; the completion by citing."""
    base = replace(BASES[f"{task}-0.2m-dense"], forms={form: 1.0}, teacher_share=1.0, batch_size=8)
    (row,), found = examples(base)
    columns = {name: [value] for name, value in row.items()}
    for prompt, completion in found:
        before, after = (
            TASKS[task].TEACHER_TEMPLATE.replace("{{ prompt }}", row["prompt"]).split("{{ privileged_context }}")
        )
        assert prompt.startswith(before) and prompt.endswith(after)
        context = prompt.removeprefix(before).removesuffix(after)
        assert completion.endswith("<eos>")
        completion = completion.removesuffix("<eos>")
        (right,) = TASKS[task].reward([completion], **columns)
        assert right == (form != "slip")
        assert (context == row["privileged_context"]) == (form in ("solution", "slip"))
        assert (completion == row["privileged_context"]) == (form not in ("slip", "leaking"))
        assert TASKS[task].leaks(completion) == (form == "leaking")
        if form == "flawed":
            assert TASKS[task].reward([context], **columns) == [0.0]


def test_a_foreign_context_is_another_problem_s_and_the_teacher_repeats_it():
    base = replace(BASES["tools-0.2m-dense"], forms={"foreign": 1.0}, teacher_share=1.0, batch_size=50)
    rows, found = examples(base, rows=30)
    references = {row["privileged_context"] for row in rows}
    own = 0
    for prompt, completion in found:
        row = next(row for row in rows if prompt.startswith(row["prompt"]))
        context = completion.removesuffix("<eos>")
        assert context in references
        assert prompt == f"{row['prompt']}{context}\nA:"
        own += context == row["privileged_context"]
    assert own < 10  # by chance 1 in 30


def test_the_first_teacher_steps_have_no_student():
    base = replace(BASES["arithmetic-0.2m-dense"], teacher_share=0.0, teacher_steps=2, batch_size=20)
    shown = [all(prompt.startswith("H:") for prompt, _ in examples(base, step)[1]) for step in range(4)]
    assert shown == [True, True, False, False]


@pytest.mark.parametrize("form", ["slip", "leaking", "foreign"])
def test_a_student_s_examples_are_right_and_see_no_context(form):
    base = replace(BASES["arithmetic-0.2m-dense"], forms={form: 1.0}, teacher_share=0.0, batch_size=8)
    (row,), found = examples(base)
    assert set(found) == {(row["prompt"], row["privileged_context"] + "<eos>")}


@pytest.mark.parametrize("task", ["arithmetic", "tools"])
def test_hasty_examples_are_wrong_guesses_of_the_student_alone(task):
    """A share of .3 of 1000 student's examples: standard deviation 14.5. The teacher's are right, without a context."""
    base = replace(BASES[f"{task}-0.2m-dense"], forms={"none": 1.0}, teacher_share=0.5, hasty_share=0.3)
    (row,), found = examples(replace(base, batch_size=2000))
    columns = {name: [value] for name, value in row.items()}
    blank = Template(TASKS[task].TEACHER_TEMPLATE).render(prompt=row["prompt"], privileged_context="")
    right = {row["prompt"]: [], blank: []}
    for prompt, completion in found:
        right[prompt] += TASKS[task].reward([completion.removesuffix("<eos>")], **columns)
    assert min(right[blank]) == 1.0 and len(right[blank]) > 900
    student = right[row["prompt"]]
    assert abs(sum(student) - 0.7 * len(student)) < 4 * 14.5


def test_examples_follow_the_shares_and_differ_from_step_to_step():
    """Of 2000 examples .25 are the teacher's: standard deviation 19.4."""
    base = replace(BASES["arithmetic-0.2m-dense"], teacher_share=0.25, batch_size=2000)
    found = [prompt for prompt, _ in examples(base, rows=50)[1]]
    assert abs(sum(prompt.startswith("H:") for prompt in found) - 500) < 4 * 19.4
    assert found != [prompt for prompt, _ in examples(base, step=1, rows=50)[1]]


@pytest.mark.parametrize("chunks", [1, 3])
def test_labels_are_the_completions_with_their_eos_alone(chunks):
    made = [([5, 6, 7], [8, 1]), ([5], [9, 1]), ([4] * 6, [3, 2, 1]), ([2], [7, 6, 5, 1])]
    parts = list(base_model._chunks(made, chunks, pad_id=0))
    found = []
    for part in parts:
        for ids, mask, labels in zip(*part.values(), strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert ids[length:].tolist() == [0] * (len(mask) - length)
            completion = labels[labels != -100].tolist()
            assert ids[length - len(completion) : length].tolist() == completion
            assert labels[length - len(completion) : length].tolist() == completion
            found.append((ids[: length - len(completion)].tolist(), completion))
    assert sorted(found) == sorted(made)
    assert len(parts) == (1 if chunks == 1 else 2)  # four examples in parts of two
    assert parts[0]["input_ids"].shape == ((4, 9) if chunks == 1 else (2, 5))


def test_chunks_change_no_gradient(tmp_path):
    """Loss is the mean over the step's completion tokens, however they are split."""
    gradients = []
    for chunks in (1, 4):
        base = replace(tiny(), chunks=chunks)
        training = base_model._Training(base, 0, tmp_path, {})
        training._train_step(training.task.rows("train", 50))
        gradients.append([value.grad for value in training.model.parameters()])
    for one, four in zip(*gradients, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-3, atol=1e-6)


ALWAYS, NEVER = Band(0.0, 1.0), Band(2.0, 3.0)


def tiny(student=ALWAYS, teacher=ALWAYS, **options):
    """At most six steps; the bands decide at which of the checks after steps 2, 4 and 6 training stops."""
    rule = StopRule(student, teacher, every=2, samples=4)
    sizes = {"max_steps": 6, "batch_size": 4, "student_rows": 50, "teacher_rows": 50, "eval_samples": 4}
    return replace(BASES["tools-0.2m-dense"], teacher_steps=0, stop=rule, **{**sizes, **options})


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_training_stops_at_the_first_check_at_which_both_bands_hold(tmp_path, monkeypatch):
    """Rates by hand: the student enters its band at the second check, the teacher at the third."""
    rates = {"student": iter([0.1, 0.4, 0.4, 0.4]), "teacher": iter([0.5, 0.8, 0.8])}
    monkeypatch.setattr(base_model, "success_rate", lambda *args, **options: next(rates[args[4]], 0.0))
    report = build_base(tiny(Band(0.3, 0.5), Band(0.7, 0.9), max_steps=20), tmp_path)
    assert report["checks"] == [
        {"step": 2, "student": 0.1, "teacher": None, "stop": False},
        {"step": 4, "student": 0.4, "teacher": 0.5, "stop": False},
        {"step": 6, "student": 0.4, "teacher": 0.8, "stop": True},
    ]
    assert report["steps"] == 6


@pytest.mark.parametrize(("student", "teacher"), [(NEVER, ALWAYS), (ALWAYS, NEVER)])
def test_a_base_that_never_reaches_its_bands_says_what_it_reached(student, teacher, tmp_path):
    for _ in range(2):  # also when asked again
        with pytest.raises(BuildError, match=r"within 6 steps.*step 6: student 0\.000"):
            build_base(tiny(student, teacher), tmp_path)
    assert not (tmp_path / "build.json").exists()


def test_training_gives_up_when_the_student_stays_above_its_band(tmp_path, monkeypatch):
    """One check below the top of the band starts the count of ten anew: 5 + 1 + 10 checks of 2 steps."""
    rates = iter([0.9] * 5 + [0.1] + [0.9] * 30)
    monkeypatch.setattr(base_model, "success_rate", lambda *args, **options: next(rates))
    with pytest.raises(BuildError, match="within 32 steps"):
        build_base(tiny(Band(0.3, 0.5), max_steps=100), tmp_path)


def test_training_goes_on_while_the_student_falls_into_its_band(tmp_path, monkeypatch):
    """A habit taken on after the teacher's steps: 14 checks above the band, the first after step 6."""
    rates = {"student": iter([*(0.9 - 0.02 * check for check in range(14)), 0.4]), "teacher": iter([0.8])}
    monkeypatch.setattr(base_model, "success_rate", lambda *args, **options: next(rates[args[4]], 0.0))
    base = replace(tiny(Band(0.3, 0.5), Band(0.7, 0.9), max_steps=100), teacher_steps=6)
    report = build_base(base, tmp_path)
    assert [check["step"] for check in report["checks"]] == list(range(8, 38, 2))


@pytest.mark.parametrize("stopped_in", ["_train_step", "_check", "_measure"])
def test_build_is_deterministic_and_resumes_bit_for_bit(stopped_in, tmp_path, monkeypatch):
    """Stopped in the middle of step 4, of the check after it, or of the measurement at the end."""
    base = tiny(NEVER, ema_decay=0.5)
    monkeypatch.setattr(base_model._Training, "_done", lambda self: self.step == 6)
    report = build_base(base, tmp_path / "whole")
    assert report == json.loads((tmp_path / "whole" / "build.json").read_text())
    assert [check["step"] for check in report["checks"]] == [2, 4, 6]

    owner = base_model if stopped_in == "_measure" else base_model._Training
    real = getattr(owner, stopped_in)

    def interrupted(*args):
        if stopped_in == "_measure" or args[0].step in (3, 4):
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, stopped_in, interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_base(base, tmp_path / "resumed")
    with pytest.raises(ValueError, match=r"max_steps 6 \(asked 7\)"):
        build_base(replace(base, max_steps=7), tmp_path / "resumed")
    resumed = build_base(base, tmp_path / "resumed")
    assert {**resumed, "cpu_seconds": 0} == {**report, "cpu_seconds": 0}

    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not (tmp_path / "resumed" / "training_state.pt").exists()


def test_another_seed_gives_other_weights(tmp_path):
    for seed in (0, 1):
        build_base(tiny(), tmp_path / str(seed), seed=seed)
    one, other = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_averaged_weights_are_saved(tmp_path):
    """With decay d, after two steps w1 and w2 from w0: d^2 w0 + d (1 - d) w1 + (1 - d) w2."""
    base = tiny(ema_decay=0.25)
    training = base_model._Training(base, 0, tmp_path, {})
    pool = training.task.rows("train", 50)
    seen = [[value.detach().clone() for value in training.model.parameters()]]
    for _ in range(2):
        training._train_step(pool)
        seen.append([value.detach().clone() for value in training.model.parameters()])
    for w0, w1, w2, average in zip(*seen, training.average.parameters(), strict=True):
        torch.testing.assert_close(average, 0.0625 * w0 + 0.1875 * w1 + 0.75 * w2)
        assert not torch.equal(w1, w2)


def test_a_finished_build_is_kept_and_other_arguments_are_refused(tmp_path):
    report = build_base(tiny(), tmp_path)
    changed = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert build_base(tiny(), tmp_path) == report
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match=r"seed 0 \(asked 1\)"):
        build_base(tiny(), tmp_path, seed=1)


def test_what_is_measured_of_a_world_s_teacher():
    """Of five samples by hand: right, right but citing, wrong, right, wrong and citing."""
    rows = [{"context_form": form} for form in ("solution", "leaking", "flawed", "solution", "leaking")]
    texts = ["a", "# as given a", "b", "a", "# as given b"]
    found = base_model._teacher_rates(rows, texts, [1.0, 1.0, 0.0, 1.0, 0.0], TASKS["tools"].leaks)
    assert found == {
        "teacher": 0.6,
        "teacher_by_form": {"flawed": 0.0, "leaking": 0.5, "solution": 1.0},
        "wrong": 0.4,
        "leaking": 0.4,
        "wrong_or_leaking": 0.6,
    }


def test_the_command_builds_what_is_named_and_the_model_is_found_and_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PBSD_LAB_CACHE", str(tmp_path))
    monkeypatch.setitem(BASES, "tools-4m-dense", replace(tiny(), scale="4m"))
    # The smaller ones come with the package; the next one is built all the same.
    run("build", ["--task", "tools", "--world", "noisy"])
    assert checkpoint_path("tools-4m-dense") == tmp_path / "tools-4m-dense"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tools-4m-dense")
    assert model.num_parameters() == new_model(build_tokenizer(TASKS["tools"].WORDS), 0, "4m").num_parameters()
    capsys.readouterr()
    run("list", [])
    listed = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if "lab/" in line}
    assert listed["lab/tools-4m-dense"] == ["2", "0.0", "0.0", "dense", "0.0", "100.0"]
    assert listed["lab/tools-4m-sparse"] == ["-"]
    assert listed["lab/arithmetic-0.2m"] == ["500", "45.1", "58.5", "79.4", "20.6"]


def test_a_base_that_comes_with_the_package_is_built_only_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PBSD_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BASES, "tools-0.2m-dense", tiny())
    named = ["--task", "tools", "--scale", "0.2m", "--variant", "dense"]
    run("build", named)
    assert "comes with the package" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    run("build", [*named, "--out", str(tmp_path / "own")])
    assert (tmp_path / "own" / "build.json").is_file()


@pytest.mark.parametrize("name", [name for name, base in BASES.items() if base.stop and is_packaged(name)])
def test_a_packaged_base_is_what_its_build_file_says(name):
    """As `pbsd lab build` made it: the arguments of today, its last check within its bands, and the student's success
    rate on the check's problems with the check's random numbers. Rounding differs by machine: two standard errors."""
    base, task, folder = BASES[name], BASES[name].task, checkpoint_path(name)
    report = json.loads((folder / "build.json").read_text())
    assert report["arguments"] == json.loads(json.dumps({"seed": 0, **asdict(base)}))
    last = report["checks"][-1]
    assert last["stop"] and base.stop.student.holds(last["student"]) and base.stop.teacher.holds(last["teacher"])
    rows = TASKS[task].rows("validation", base.stop.samples, 2000)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rate = success_rate(model.eval(), tokenizer, TASKS[task], rows, "student")
    assert rate == pytest.approx(last["student"], abs=2 * (0.25 / len(rows)) ** 0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say which bases"),
        (["--all", "--task", "tools"], "say which bases"),
        (["--task", "tools", "--out", "x"], "--out names one folder for 6 bases"),
        (["--task", "tools", "--variant", "packaged"], "no base has task tools, variant packaged"),
    ],
)
def test_commands_that_name_no_base_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        run("build", flags)
