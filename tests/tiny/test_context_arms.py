"""Control arms: which context the teacher is shown, from the permutation to the prompts, the checks and the resume."""

import json

import pytest
from conftest import HELD_OUT, ROWS

from pbsd import GRPOConfig, OPSDConfig, PBSDConfig, RFTConfig, SDPOConfig
from pbsd.cli import main
from pbsd.config.base import ContextRule
from pbsd.data import PromptDataset, shown_contexts
from pbsd.render import Renderer


def teacher_contexts(rows, arm, seed, dose=1.0):
    return shown_contexts(rows, ContextRule(arm, dose), seed)


def rows_of(*contexts):
    return [{"prompt": f"p{index}", "privileged_context": context} for index, context in enumerate(contexts)]


# The permutation


@pytest.mark.parametrize("seed", range(20))
def test_every_row_gets_another_s_context_and_each_is_used_once(seed):
    own = [f"c{index}" for index in range(9)]
    given = teacher_contexts(rows_of(*own), "shuffled", seed)
    assert sorted(given) == sorted(own)
    assert all(one != other for one, other in zip(given, own, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_an_equal_context_is_not_another_one(seed):
    """Half the rows share one context, as text or as messages of the same text: each must get one of the other half."""
    same = ["x", [{"role": "user", "content": "x"}], "x"]
    own = [same[0], "a", same[1], "b", "c", same[2]]
    given = teacher_contexts(rows_of(*own), "shuffled", seed)
    for one, other in zip(own, given, strict=True):
        assert (one in same) != (other in same)


def test_rows_without_context_stay_without_and_give_none_away():
    given = teacher_contexts(rows_of(None, "a", "", "b", [], "c"), "shuffled", 0)
    assert [given[index] for index in (0, 2, 4)] == [None, None, None]
    assert sorted([given[1], given[3], given[5]]) == ["a", "b", "c"]


def test_the_seed_decides_and_nothing_else():
    rows = rows_of(*(f"c{index}" for index in range(12)))
    first = teacher_contexts(rows, "shuffled", 0)
    assert first == teacher_contexts(rows, "shuffled", 0)
    orders = {tuple(teacher_contexts(rows, "shuffled", seed)) for seed in range(10)}
    assert len(orders) == 10
    assert teacher_contexts(rows, "paired", 0) == [row["privileged_context"] for row in rows]
    assert teacher_contexts(rows, "none", 0) == [None] * 12


@pytest.mark.parametrize(
    ("dose", "expected"),
    [(1.0, "a  b\nc d "), (0.9, "a  b\nc d "), (0.5, "a  b\n"), (0.45, "a  b\n"), (0.44, "a  b"), (0.01, "a")],
)
def test_a_dose_is_the_first_characters_rounded_up(dose, expected):
    """Nine characters: .9 of them is 8.1, so all nine; .44 is 3.96, so four. Messages are text then; rows without
    context stay without."""
    messages = [{"role": "user", "content": "a  b"}, {"role": "assistant", "content": "c d "}]
    rows = rows_of("a  b\nc d ", messages, None, " ")
    text, of_messages, none, blank = teacher_contexts(rows, "paired", 0, dose)
    assert (text, none, blank) == (expected, None, " ")
    assert of_messages == (messages if dose == 1 else expected)


def test_a_dose_of_another_s_context_is_never_equal_to_ones_own():
    """Half of 'aab' is 'aa' in two of four rows: those get 'bb' and 'cc'."""
    rows = rows_of("aab", "aac", "bbd", "cce")
    for seed in range(10):
        given = teacher_contexts(rows, "shuffled", seed, 0.5)
        assert sorted(given[:2]) == ["bb", "cc"]
        assert given[2:] == ["aa", "aa"]


def test_a_dose_of_hundredths_is_not_rounded_up_past_a_whole_number():
    """0.07 * 100 is 7.000000000000001 in floating point."""
    assert teacher_contexts(rows_of("x" * 100), "paired", 0, 0.07) == ["x" * 7]


def test_training_and_what_people_see_have_the_dose(make_trainer):
    """The teacher's prompts end with the first half of their context, and rewards read the whole row."""
    trainer = make_trainer(context_dose=0.5)
    for (student, teacher), prompt, row in zip(prompts_of(trainer), trainer.train_dataset.prompts, ROWS, strict=True):
        whole = row["privileged_context"]
        half = whole[: -(-len(whole) // 2)]
        assert teacher == f"{student}\n\n{half}"
        assert (prompt.context, prompt.columns["privileged_context"]) == (half, whole)


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        (["x", "x", "a"], "2 of the 3 that do share one, more than half"),
        (["x"], "1 of the 1"),
        ([None, ""], "no row does"),
    ],
)
def test_what_cannot_be_shuffled_is_refused(contexts, words):
    with pytest.raises(ValueError) as caught:
        teacher_contexts(rows_of(*contexts), "shuffled", 0)
    assert words in str(caught.value)


def test_other_columns_of_the_template_stay_the_row_s_own_and_that_is_said(tokenizer, caplog):
    renderer = Renderer(tokenizer, "{{ prompt }}{{ privileged_context }}{{ hint }}")
    rows = [{**row, "hint": str(index)} for index, row in enumerate(rows_of("a", "b"))]
    dataset = PromptDataset.from_rows(rows, renderer, drop_overlong=False, context=ContextRule("shuffled"))
    assert [tokenizer.decode(list(prompt.teacher_ids)) for prompt in dataset.prompts] == ["p0b0", "p1a1"]
    assert "the teacher still reads its row's own hint" in caplog.text


# The prompts of a run


def prompts_of(trainer):
    decode = trainer.engine.tokenizer.decode
    return [
        (decode(list(prompt.student_ids)), decode(list(prompt.teacher_ids))) for prompt in trainer.train_dataset.prompts
    ]


@pytest.mark.parametrize("method", ["pbsd", "opsd", "sdft", "rft"])
def test_the_teacher_is_shown_what_the_arm_says_and_rewards_read_the_row(make_method, method):
    options = {"rft_source": "teacher"} if method == "rft" else {}
    arms = {arm: make_method(method, context=arm, **options) for arm in ("paired", "shuffled", "none")}
    own = [row["privileged_context"] for row in ROWS]
    for arm, trainer in arms.items():
        assert [student for student, _ in prompts_of(trainer)] == [row["prompt"] for row in ROWS]
        shown = [prompt.context for prompt in trainer.train_dataset.prompts]
        assert shown == teacher_contexts(ROWS, arm, trainer.args.seed)
        for (student, teacher), context in zip(prompts_of(trainer), shown, strict=True):
            assert teacher == (student if context is None else f"{student}\n\n{context}")
        assert [prompt.columns["privileged_context"] for prompt in trainer.train_dataset.prompts] == own
        assert [prompt.context for prompt in trainer.eval_dataset.prompts] == [
            row["privileged_context"] for row in HELD_OUT
        ]


def test_arms_train_on_other_teachers_and_show_it_in_the_samples(make_trainer):
    """The records name the context that the teacher was shown; its samples are of other distributions."""
    texts = {}
    for arm in ("paired", "shuffled", "none"):
        trainer, records = make_trainer(context=arm, max_steps=1), []
        trainer.on_samples = lambda step, samples, records=records: records.extend(samples)
        trainer.train()
        shown = dict(enumerate(teacher_contexts(ROWS, arm, trainer.args.seed)))
        assert all(record["privileged_context"] == shown[record["row"]] for record in records)
        batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
        texts[arm] = [rollout.teacher_logprob for rollout in batch.rollouts]
    assert texts["paired"] != texts["shuffled"] != texts["none"] != texts["paired"]


def test_without_context_the_initial_teacher_is_the_student(make_trainer):
    trainer = make_trainer(context="none")
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    for rollout in batch.rollouts:
        assert rollout.teacher_logprobs == pytest.approx(rollout.sampler_logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "options"),
    [(SDPOConfig, {}), (RFTConfig, {"rft_source": "student"})],
)
def test_methods_whose_teacher_reads_no_context_refuse_an_arm(tmp_path, config, options):
    with pytest.raises(ValueError, match="context='none' is for a teacher that reads privileged_context"):
        config(output_dir=str(tmp_path), use_cpu=True, context="none", **options)


def test_arms_are_for_teachers_and_known_by_name(tmp_path):
    with pytest.raises(TypeError, match="context"):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, context="none")
    for config in (PBSDConfig, OPSDConfig):
        with pytest.raises(ValueError, match="context must be one of paired, shuffled, none"):
            config(output_dir=str(tmp_path), use_cpu=True, context="random")


@pytest.mark.parametrize("dose", [0.0, 1.5, float("nan")])
def test_a_dose_is_a_share(tmp_path, dose):
    with pytest.raises(ValueError, match=r"context_dose must lie in \(0, 1\]"):
        PBSDConfig(output_dir=str(tmp_path), use_cpu=True, context_dose=dose)


@pytest.mark.parametrize(("config", "options"), [(PBSDConfig, {"context": "none"}), (SDPOConfig, {})])
def test_a_dose_of_nothing_is_refused(tmp_path, config, options):
    with pytest.raises(ValueError, match="context_dose shortens the context that a teacher reads, and none reads one"):
        config(output_dir=str(tmp_path), use_cpu=True, context_dose=0.5, **options)


# What people see


def test_render_doctor_and_manifest_show_the_arm(recipe, tmp_path, capsys):
    assert main(["render", str(recipe), "-n", "1", "--context", "shuffled"]) == 0
    out = capsys.readouterr().out
    donor = teacher_contexts(ROWS, "shuffled", 42)[0]
    assert "context: shuffled: the teacher sees another row's context (seed 42)" in out
    assert "aaa" not in out
    assert donor in out

    assert main(["render", str(recipe), "-n", "1", "--context_dose", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "the teacher sees its row's context, the first 0.5 of its characters" in " ".join(out.split())
    assert ROWS[0]["privileged_context"] not in out

    main(["doctor", str(recipe), "--context_dose", "0.5"])
    assert "the first 0.5 of its characters" in " ".join(capsys.readouterr().out.split())

    main(["doctor", str(recipe), "--context", "none"])
    out = capsys.readouterr().out
    assert "ok   data: context: none: the teacher sees no context" in out
    assert "ok   templates: first row: student 6 tokens, teacher 6 tokens" in out

    assert main(["train", str(recipe), "--context", "shuffled"]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["options"]["context"] == "shuffled"
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all(sample["privileged_context"][0] not in sample["prompt"].removeprefix("say") for sample in samples)


def test_a_resumed_run_keeps_its_arm_and_its_permutation(recipe, tmp_path, capsys):
    def train(folder, *flags):
        return main(["train", str(recipe), "--output_dir", str(tmp_path / folder), "--context", "shuffled", *flags])

    assert train("whole") == 0
    assert train("resumed", "--max_steps", "2") == 0
    assert train("resumed", "--resume") == 0
    whole, resumed = ((tmp_path / folder / "samples.jsonl").read_text() for folder in ("whole", "resumed"))
    assert whole == resumed
    assert train("resumed", "--resume", "--context", "none") == 2
    assert "began with other options, rows, context than" in capsys.readouterr().err
