"""`pbsd evaluate` as a person uses it: a tiny random model on files here, on BFCL, on a generated task; a kill, other
settings, and two results compared."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pbsd import benchmarks
from pbsd.benchmarks import examples
from pbsd.cli import main
from pbsd.evaluate import measure
from pbsd.evaluate.records import ResultFolder

FILES = ("records.jsonl", "summary.json")


@pytest.fixture
def tiny(tmp_path, tokenizer):
    """Makes a model folder from a seed."""

    def make(seed=0, chat_template=tokenizer.chat_template):
        folder = tmp_path / f"model-{seed}"
        tiny_model(tokenizer, seed).save_pretrained(folder)
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def gsm8k(tmp_path):
    rows = [{**row, "question": f"{n}. {row['question']}"} for n in range(3) for row in examples.MATHEMATICS["gsm8k"]]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--benchmark", "gsm8k", "--local", str(tmp_path / "rows"), "--max_completion_length", "12"]


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def content(folder):
    return [(folder / name).read_bytes() for name in FILES]


def test_a_result_holds_records_figures_and_settings(tiny, gsm8k, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [*gsm8k, "--n", "4", "--top_k", "50", "--seed", "7", "--out", str(out)]
    assert main(["evaluate", tiny(), *flags]) == 0
    shown = capsys.readouterr().out
    for words in ("gsm8k (test, 6 problems)", "avg@4", "pass@2", "maj@4", "tokens per correct answer", "outcomes: "):
        assert words in shown
    written = records(out)
    assert [record["row"] for record in written] == list(range(6))
    assert all(len(record["completions"]) == 4 for record in written)
    samples = [sample for record in written for sample in record["completions"]]
    assert all(sample["finished"] or sample["tokens"] == 12 for sample in samples)
    assert len({sample["text"] for sample in samples}) > 20  # rows and samples have random numbers of their own
    summary = json.loads((out / "summary.json").read_text())
    assert summary["generated_tokens"] == sum(sample["tokens"] for sample in samples)
    assert sum(summary["outcomes"].values()) == 24
    settings = json.loads((out / "evaluation.json").read_text())["settings"]
    expected = {
        "n": 4,
        "top_k": 50,
        "seed": 7,
        "thinking": "as the template does",
        "prompt_format": "chat",
        "problems": 6,
    }
    assert settings.items() >= expected.items()
    assert len(settings["weights_sha256"]) == 64 and settings["versions"].keys() >= {"torch", "math-verify"}


def test_the_gold_answers_pass_and_a_wrong_one_is_named(gsm8k, tmp_path, capsys):
    assert main(["evaluate", *gsm8k, "--check_gold"]) == 0
    assert "6 of 6 references grade correct\n" in capsys.readouterr().out
    rows = [{"question": "q", "answer": "#### \\frac{"}]
    (tmp_path / "rows/test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert main(["evaluate", *gsm8k, "--check_gold"]) == 1
    assert "0 of 1 references grade correct\n  " in capsys.readouterr().out


@pytest.mark.parametrize(
    "reference",
    ["5 \\foo{3}", "30 @ \\$ 14", "\\frac{1}{0}", "\\{x \\mid x = 7k, k \\in \\mathbb{Z}\\}", "1, 2, \\ldots, 10"],
)
def test_a_reference_that_is_read_only_in_part_is_refused(gsm8k, tmp_path, capsys, reference):
    """Each holds a number, to which a reader of parts would reduce it; the row beside it passes."""
    rows = [{"question": "q", "answer": f"#### {answer}"} for answer in (reference, "d = 9, M = (2, 3)")]
    (tmp_path / "rows/test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["evaluate", *gsm8k, "--check_gold"]) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 references grade correct\n" in shown and ": error: the reference answer" in shown


def test_the_result_depends_neither_on_the_batch_nor_on_where_it_was_stopped(tiny, gsm8k, tmp_path):
    model = tiny()
    for name, batch in (("one", "1"), ("eight", "8")):
        assert main(["evaluate", model, *gsm8k, "--n", "2", "--batch_size", batch, "--out", str(tmp_path / name)]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "eight")
    whole = (tmp_path / "eight/records.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for done, torn in ((1, b""), (3, lines[3][:40]), (4, b'{"ro')):  # within a batch of four problems, and torn
        (tmp_path / "eight/records.jsonl").write_bytes(b"".join(lines[:done]) + torn)
        (tmp_path / "eight/summary.json").unlink()
        assert main(["evaluate", model, *gsm8k, "--n", "2", "--batch_size", "8", "--out", str(tmp_path / "eight")]) == 0
        assert content(tmp_path / "eight") == content(tmp_path / "one")


def test_kill_minus_nine_then_the_same_command_gives_the_same_bytes(tiny, gsm8k, tmp_path):
    model, out = tiny(), tmp_path / "killed"
    flags = ["evaluate", model, *gsm8k, "--n", "2", "--batch_size", "2"]
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    # A grader that takes its time, so that the kill comes between two batches.
    slow = (
        "import time, sys; from pbsd.engine import Engine; grade = Engine.grade\n"
        "def later(*a): time.sleep(1); return grade(*a)\n"
        "Engine.grade = later\nfrom pbsd.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", slow, *flags, "--out", str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "records.jsonl").exists() or not records(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(records(out)) < 6 and not (out / "summary.json").exists()
    assert main([*flags, "--out", str(out)]) == 0
    assert content(out) == content(tmp_path / "whole")
    assert len(json.loads((out / "evaluation.json").read_text())["sessions"]) == 2


def test_other_settings_are_refused_by_name_and_restart_moves_the_old_aside(tiny, gsm8k, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["evaluate", tiny(), *gsm8k, "--n", "2", "--out", str(out)]
    assert main(flags) == 0
    before = content(out)
    for changed, words in (
        (["--temperature", "0.6"], "temperature: 1.0 -> 0.6"),
        (["--reward_timeout", "5"], "reward_timeout: 10.0 -> 5.0"),
        (["--limit", "2"], "problems: 6 -> 2"),
        (["--batch_size", "2"], "batch_size: 64 -> 2"),
    ):
        assert main([*flags, *changed]) == 2
        assert words in capsys.readouterr().err
    assert main(["evaluate", tiny(1), *flags[2:]]) == 2
    assert "weights_sha256" in capsys.readouterr().err
    manifest = (out / "evaluation.json").read_text()
    assert '"device": "cpu"' in manifest
    (out / "evaluation.json").write_text(manifest.replace('"device": "cpu"', '"device": "cuda"', 1))
    assert main(flags) == 2
    assert 'device: "cuda" -> "cpu"' in capsys.readouterr().err
    (out / "evaluation.json").write_text(manifest)
    assert content(out) == before
    assert main([*flags, "--temperature", "0.6", "--restart"]) == 0
    assert content(tmp_path / "out.1") == before
    assert main(["evaluate", tiny(), *gsm8k, "--out", str(tmp_path / "model-0")]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_restart_does_not_move_what_is_evaluated(tiny, gsm8k, tmp_path, capsys):
    """The model, the rows, and the base of an adapter, in a folder that a run or an evaluation wrote."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"method": "pbsd", "sessions": []}')
    os.rename(tiny(), folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(tmp_path / "adapter")
    for model in (folder / "model", tmp_path / "adapter"):
        assert main(["evaluate", str(model), *gsm8k, "--out", str(folder), "--restart"]) == 2
        assert f"holds '{folder}/model', which this command reads" in capsys.readouterr().err
    (folder / "rows").mkdir()
    (folder / "rows" / "test.jsonl").write_text((tmp_path / "rows" / "test.jsonl").read_text())
    local = ["--benchmark", "gsm8k", "--local", str(folder / "rows")]
    assert main(["evaluate", tiny(1), *local, "--out", str(folder), "--restart"]) == 2
    assert f"holds '{folder}/rows', which this command reads" in capsys.readouterr().err
    assert not (tmp_path / "run.1").exists()


def test_two_evaluations_in_one_folder_are_refused(tiny, gsm8k, tmp_path, capsys):
    with ResultFolder(tmp_path / "out").lock():
        assert main(["evaluate", tiny(), *gsm8k, "--out", str(tmp_path / "out")]) == 2
    assert "another run is writing here" in capsys.readouterr().err


def test_bfcl_rows_of_the_package(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [
        "--benchmark",
        "bfcl:simple",
        "--limit",
        "3",
        "--n",
        "1",
        "--temperature",
        "0",
        "--max_completion_length",
        "8",
    ]
    assert main(["evaluate", tiny(), *flags, "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["outcomes"]["correct"] == 0
    assert [record["id"] for record in records(out)] == [f"simple_python_{n}" for n in range(3)]
    assert main(["evaluate", tiny(), *flags, "--scorer", "paper_parity", "--out", str(out)]) == 2
    assert 'reward.scorer: "strict" -> "paper_parity"' in capsys.readouterr().err


def test_a_generated_task_without_a_chat_template(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--benchmark", "reasoning-gym:chain_sum", "--limit", "2", "--n", "2", "--max_completion_length", "8"]
    assert main(["evaluate", tiny(1), *flags, "--out", str(tmp_path / "chat")]) == 0
    assert main(["evaluate", tiny(chat_template=None), *flags, "--out", str(out)]) == 0
    compare = ["evaluate", "--compare", str(out), str(tmp_path / "chat")]
    assert main(compare) == 2
    assert 'prompt_format: "text" -> "chat"' in capsys.readouterr().err
    assert main([*compare, "--allow_different"]) == 0
    assert json.loads((out / "evaluation.json").read_text())["settings"]["prompt_format"] == "text"
    assert isinstance(records(out)[0]["prompt"], str)
    assert json.loads((out / "summary.json").read_text())["outcomes"]["unparsed"] == 4


def test_thinking_reaches_the_template_or_is_refused(tiny, gsm8k, tmp_path, capsys):
    assert main(["evaluate", tiny(), *gsm8k, "--thinking", "on", "--out", str(tmp_path / "out")]) == 2
    assert "has no `enable_thinking`" in capsys.readouterr().err
    template = "{{ messages[0]['content'] }}{% if enable_thinking %}[on]{% else %}[off]{% endif %}"
    model = tiny(chat_template=template)
    for thinking in ("on", "off"):
        query = benchmarks.Query(local=gsm8k[3])
        request = measure.Request(model, "gsm8k", query, max_completion_length=4, thinking=thinking)
        evaluation = measure.prepare(request, tmp_path)
        prompt = evaluation.engine.tokenizer.decode(list(evaluation.prompts[0].student_ids))
        assert prompt.endswith(f"[{thinking}]") and evaluation.settings["thinking"] == thinking


def test_a_thought_that_the_template_opened_and_the_length_cut_is_no_answer(tiny, gsm8k, tmp_path):
    """Every digit that the tiny model writes would be read as its answer, were the thought not known to be open. The
    control: without the template's `<think>` some completions are read."""
    outcomes = {}
    for seed, opening in ((0, ""), (1, "<think>\n")):
        model = tiny(seed, chat_template="{{ messages[0]['content'] }}\n" + opening)
        out = tmp_path / str(seed)
        assert main(["evaluate", model, *gsm8k, "--n", "8", "--out", str(out)]) == 0
        samples = [sample for record in records(out) for sample in record["completions"]]
        assert all(sample["text"].startswith("<think>") == bool(opening) for sample in samples)
        outcomes[opening] = {sample["outcome"] for sample in samples if "</think>" not in sample["text"]}
    assert outcomes[""] > {"unparsed"} == outcomes["<think>\n"]


def test_a_damaged_result_names_its_file(tiny, gsm8k, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["evaluate", tiny(), *gsm8k, "--n", "1", "--out", str(out)]
    assert main(flags) == 0
    whole, manifest = (out / "records.jsonl").read_text(), (out / "evaluation.json").read_text()
    last = json.loads(whole.splitlines()[-1])
    (out / "records.jsonl").write_text(whole + json.dumps({**last, "row": last["row"] + 1}) + "\n")
    assert main(flags) == 2
    assert "are not those of rows 0, 1, 2 ... of 6" in capsys.readouterr().err
    (out / "records.jsonl").write_text(whole)
    (out / "evaluation.json").write_text(manifest[:40])
    for again in (flags, ["evaluate", "--compare", str(out), str(out)]):
        assert main(again) == 2
        assert f"{out}/evaluation.json: not JSON" in capsys.readouterr().err


def test_a_model_whose_name_looks_like_markup_is_named(gsm8k, tiny, tmp_path, capsys):
    folder = tmp_path / "[bold]x"
    os.rename(tiny(), folder)
    assert main(["evaluate", str(folder), *gsm8k, "--n", "1", "--out", str(tmp_path / "out")]) == 0
    assert "[bold]xongsm8k" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_compare_pairs_by_problem_and_refuses_other_settings(tiny, gsm8k, tmp_path, capsys):
    for name, seed, more in (
        ("a", 0, []),
        ("b", 1, ["--batch_size", "2"]),  # other rounding, yet comparable
        ("hot", 1, ["--temperature", "2"]),
        ("few", 1, ["--limit", "4"]),
        ("more", 1, ["--n", "4"]),
    ):
        assert main(["evaluate", tiny(seed), *gsm8k, "--n", "2", *more, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "more"), "--allow_different"]) == 0
    shown = capsys.readouterr().out
    assert "avg@2 and avg@4" in shown and "differs: n: 2 -> 4" in shown and "estimate the same mean" in shown
    # Known results: b solves what a does and two more.
    for name, solved in (("a", {0}), ("b", {0, 2, 4})):
        path = tmp_path / name / "records.jsonl"
        changed = records(tmp_path / name)
        for record in changed:
            right = record["row"] in solved
            for sample in record["completions"]:
                sample |= {"outcome": "correct" if right else "wrong", "score": float(right)}
        path.write_text("".join(json.dumps(record) + "\n" for record in changed))
    capsys.readouterr()
    paths = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["evaluate", "--compare", *paths, "--json", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "6 problems, paired" in shown and "differs: batch_size: 64 -> 2" in shown
    figure = json.loads((tmp_path / "c.json").read_text())["figures"]["avg@2"]
    assert (figure["first"], figure["second"], figure["difference_estimate"]) == pytest.approx((1 / 6, 1 / 2, 1 / 3))
    assert "tokens per correct answer" in shown
    # Differences 0, 0, 1, 0, 1, 0: sd = sqrt(4/15), so the half width is t(5) * sd / sqrt(6) = 2.5706 * 0.21082.
    assert figure["difference_high"] == pytest.approx(
        math.tanh(math.atanh(1 / 3) + 2.57058 * 0.210819 / (1 - 1 / 9)), rel=1e-4
    )
    assert main(["evaluate", "--compare", paths[0], str(tmp_path / "hot")]) == 2
    assert "temperature: 1.0 -> 2.0" in capsys.readouterr().err
    to_few = ["evaluate", "--compare", paths[0], str(tmp_path / "few"), "--allow_different"]
    assert main([*to_few, "--json", str(tmp_path / "c.json")]) == 0
    per_correct = json.loads((tmp_path / "c.json").read_text())["figures"]["tokens_per_correct"]
    assert per_correct["first"] > 0 and per_correct["second"] is None  # few solves nothing; JSON has no NaN
    shown = capsys.readouterr().out
    assert "4 problems, paired" in shown and "2 problems are in one of the two only" in shown
    manifest = (tmp_path / "b/evaluation.json").read_text()
    for package, refused in (("math-verify", True), ("pbsd", True), ("torch", False), ("reasoning-gym", False)):
        changed = json.loads(manifest)
        old, changed["settings"]["versions"][package] = changed["settings"]["versions"][package], "0.0.7"
        (tmp_path / "b/evaluation.json").write_text(json.dumps(changed))
        words = f'versions.{package}: "{old}" -> "0.0.7"'
        assert main(["evaluate", "--compare", *paths]) == (2 if refused else 0)
        shown = capsys.readouterr()
        assert words in (shown.err if refused else shown.out)
        assert main(["evaluate", "--compare", *paths, "--allow_different"]) == 0
        assert capsys.readouterr().out.count(words) == 1
    (tmp_path / "b/summary.json").unlink()
    assert main(["evaluate", "--compare", *paths]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_an_adapters_folder_is_evaluated_as_its_base_with_it(tiny, gsm8k, tmp_path):
    base, adapted = tiny(), str(tmp_path / "adapter")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=4)
    )
    model.save_pretrained(adapted)
    AutoTokenizer.from_pretrained(base).save_pretrained(adapted)
    for name, folder in (("base", base), ("adapted", adapted)):
        assert main(["evaluate", folder, *gsm8k, "--n", "1", "--out", str(tmp_path / name)]) == 0
    merged = str(tmp_path / "merged")
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    assert main(["evaluate", merged, *gsm8k, "--n", "1", "--out", str(tmp_path / "whole")]) == 0
    assert records(tmp_path / "adapted") == records(tmp_path / "whole") != records(tmp_path / "base")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--benchmark", "gsm8k"], "say which model"),
        (["m"], "say which benchmark"),
        (["m", "--benchmark", "gsm9k"], "did you mean 'gsm8k'"),
        (["m", "--benchmark", "gsm8k", "--temperature", "0"], "temperature 0 gives the same completion 8 times"),
        (["--compare", "/nowhere", "/nowhere"], "no evaluation here"),
    ],
)
def test_wrong_use_names_the_mend(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *flags]) == 2
    assert words in capsys.readouterr().err
