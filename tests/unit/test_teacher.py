"""Teacher kinds: values by hand, and the student always restored."""

import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig, get_peft_model

from pbsd.teacher import Teacher


def set_all(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)


def first(model):
    return next(p for p in model.parameters() if p.requires_grad).flatten()[0].item()


def teacher_value(teacher):
    with teacher.acting() as module:
        return first(module)


def test_initial_keeps_the_first_weights(model):
    set_all(model, 1.0)
    teacher = Teacher("initial", model)
    set_all(model, 2.0)
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.0
    assert first(model) == 2.0


def test_live_is_the_student(model):
    teacher = Teacher("live", model)
    set_all(model, 2.0)
    assert teacher_value(teacher) == 2.0


def test_ema_by_hand(model):
    """decay 0.75, teacher 1, student 2: 0.75 * 1 + 0.25 * 2 = 1.25, then 0.75 * 1.25 + 0.5 = 1.4375."""
    set_all(model, 1.0)
    teacher = Teacher("ema", model, ema_decay=0.75)
    set_all(model, 2.0)
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.25
    teacher.after_step(2)
    assert teacher_value(teacher) == 1.4375
    assert first(model) == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_average_of_narrow_weights_moves(model, dtype):
    """Decay 0.99, teacher 1, student 2, 2,000 steps: 2 - 0.99^2000 = 2 to seven digits. Kept in bfloat16, whose steps
    there are 2^-7, it would stop where 0.01 (2 - x) is less than half of one, at x = 1.61."""
    model.to(dtype)
    set_all(model, 1.0)
    teacher = Teacher("ema", model, ema_decay=0.99)
    set_all(model, 2.0)
    for step in range(2000):
        teacher.after_step(step + 1)
    assert teacher_value(teacher) == pytest.approx(2.0, abs=1e-3)
    with teacher.acting() as module:
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def test_small_steps_of_the_student_reach_a_narrow_average(model):
    """bfloat16 between 1 and 2 has steps of 1/128. The student goes up by one and stays; with decay 0.99 the average is
    0.63 of the way after 100 steps, 1 + 0.634 / 128 = 1.00495, which acts rounded to 1.0078, the nearest."""
    model.to(torch.bfloat16)
    set_all(model, 1.0)
    teacher = Teacher("ema", model, ema_decay=0.99)
    set_all(model, 1 + 1 / 128)
    for step in range(100):
        teacher.after_step(step + 1)
    held = next(iter(teacher.state_dict()["weights"].values()))
    assert held.dtype == torch.float32
    assert held.flatten()[0].item() == pytest.approx(1 + (1 - 0.99**100) / 128, abs=1e-6)
    assert teacher_value(teacher) == 1 + 1 / 128


def test_a_blend_of_narrow_weights_moves(model):
    """Blend 0.01, ten refreshes: 2 - 0.99^10 = 1.0956, to a half of bfloat16's step of 1/128. A look beforehand shows
    the eleventh, 2 - 0.99^11 = 1.1047, and changes nothing."""
    model.to(torch.bfloat16)
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=1, refresh_blend=0.01)
    set_all(model, 2.0)
    for step in range(10):
        teacher.after_step(step + 1)
    assert teacher_value(teacher) == pytest.approx(2 - 0.99**10, abs=1 / 256)
    with teacher.as_refreshed():
        assert teacher_value(teacher) == pytest.approx(2 - 0.99**11, abs=1 / 256)
    assert teacher_value(teacher) == pytest.approx(2 - 0.99**10, abs=1 / 256)


@pytest.mark.parametrize("options", [{"kind": "ema"}, {"kind": "refreshed", "refresh_steps": 1, "refresh_blend": 0.1}])
def test_a_resumed_narrow_average_is_the_same_bit_for_bit(model, options, tmp_path):
    model.to(torch.bfloat16)
    set_all(model, 1.0)
    whole, killed = (Teacher(student=model, **options) for _ in range(2))
    for step in range(10):
        set_all(model, 1.0 + step)
        if step == 5:
            torch.save(killed.state_dict(), tmp_path / "state.pt")
            killed = Teacher(student=model, **options)
            killed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for teacher in (whole, killed):
            teacher.after_step(step + 1)
    for part in ("weights", "precise"):
        ours, theirs = getattr(whole, part), getattr(killed, part)
        assert ours and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_copies_that_do_not_mix_cost_no_more(model):
    model.to(torch.bfloat16)
    for teacher in (Teacher("initial", model), Teacher("refreshed", model)):
        assert not teacher.precise
        assert {value.dtype for value in teacher.weights.values()} == {torch.bfloat16}


def test_refreshed_every_n_steps(model):
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=2)
    set_all(model, 3.0)
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.0
    teacher.after_step(2)
    assert teacher_value(teacher) == 3.0
    assert teacher.refreshes == 1


def test_refresh_rule_asks_for_a_lead(model):
    """Margin 0.1: a lead of 0.05 is too little; the next window's lead of 0.25 is enough."""
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=1, refresh_margin=0.1)
    set_all(model, 3.0)
    teacher.observe([0.5, 0.6], [0.5])
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.0
    teacher.observe([1.0, 0.5], [0.5])
    teacher.after_step(2)
    assert teacher_value(teacher) == 3.0


def test_an_equal_challenger_replaces_nobody(model):
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=1, refresh_margin=0.0)
    set_all(model, 3.0)
    teacher.observe([0.5], [0.5])
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.0


def test_a_refresh_can_blend(model):
    """Blend 0.25, teacher 1, student 3: 0.75 * 1 + 0.25 * 3 = 1.5; a look at it beforehand changes nothing."""
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=1, refresh_blend=0.25)
    set_all(model, 3.0)
    with teacher.as_refreshed():
        assert teacher_value(teacher) == 1.5
    assert teacher_value(teacher) == 1.0
    teacher.after_step(1)
    assert teacher_value(teacher) == 1.5
    assert first(model) == 3.0


def test_whose_rewards_a_refresh_waits_for(model):
    def challengers(**options):
        teacher = Teacher("refreshed", model, refresh_steps=3, **options)
        return [teacher.challenger(step) for step in (1, 2, 3)]

    assert challengers() == [None, None, None]
    assert challengers(refresh_margin=0.0) == ["student"] * 3
    assert challengers(refresh_margin=0.0, refresh_measure="context") == [None, None, "context"]
    assert Teacher("initial", model).challenger(3) is None


def test_external_is_another_model(model, tokenizer):

    other = tiny_model(tokenizer, seed=1)
    teacher = Teacher("external", model, external=other)
    with teacher.acting() as module:
        assert module is other
        assert not torch.is_grad_enabled()
    assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("kind", ["initial", "ema"])
def test_the_student_is_back_after_an_error(model, kind):
    set_all(model, 1.0)
    teacher = Teacher(kind, model)
    set_all(model, 2.0)
    model.train()

    def fail():
        with teacher.acting():
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    assert first(model) == 2.0
    assert model.training
    assert teacher_value(teacher) == 1.0


def test_adapter_off_gives_the_base_models_scores(model):
    ids = torch.tensor([[5, 6, 7]])
    base = model(input_ids=ids).logits.detach()
    student = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    teacher = Teacher("initial", student, adapter_is_new=True)
    set_all(student, 0.3)
    assert teacher.weights == {}
    with teacher.acting() as module:
        assert torch.equal(module(input_ids=ids).logits, base)
    assert not torch.allclose(student(input_ids=ids).logits, base)
    assert {n for n, p in student.named_parameters() if p.requires_grad} and student.active_adapters == ["default"]


def test_an_adapter_given_trained_is_its_own_initial_teacher(model):
    """Switching it off would give other weights than those training started from."""
    student = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    set_all(student, 0.3)
    teacher = Teacher("initial", student, adapter_is_new=False)
    set_all(student, 0.5)
    assert teacher_value(teacher) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["initial", "ema", "refreshed"])
def test_the_teacher_follows_the_student_to_its_device(model, kind):
    teacher = Teacher(kind, model)
    model.to("meta")
    teacher.to_student_device()
    assert {value.device.type for value in teacher.weights.values()} == {"meta"}


def test_an_interrupt_while_weights_are_put_in_place_leaves_the_student_whole(model):
    """The fourth assignment is interrupted: the first three must not stay the teacher's."""
    set_all(model, 1.0)
    teacher = Teacher("initial", model)
    set_all(model, 2.0)

    class Interrupted(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            if self.reads == 4:
                raise KeyboardInterrupt
            return super().__getitem__(name)

    teacher.weights = Interrupted(teacher.weights)
    with pytest.raises(KeyboardInterrupt), teacher.acting():
        pass
    assert all((parameter == 2.0).all() for parameter in model.parameters())


def test_state_round_trip(model):
    set_all(model, 1.0)
    teacher = Teacher("refreshed", model, refresh_steps=5)
    teacher.observe([1.0], [0.0, 0.5])
    set_all(model, 2.0)
    other = Teacher("refreshed", model, refresh_steps=5)
    other.load_state_dict(teacher.state_dict())
    assert teacher_value(other) == 1.0
    assert other.quality == teacher.quality


def test_state_of_another_kind_is_refused(model):
    state = Teacher("ema", model).state_dict()
    with pytest.raises(ValueError, match="'ema'"):
        Teacher("initial", model).load_state_dict(state)
