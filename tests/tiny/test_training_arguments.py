"""Every field of transformers' TrainingArguments works here or is refused by name: one that is new fails by name."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import HELD_OUT, tiny_model
from transformers import Trainer, TrainingArguments

from pbsd import PBSDConfig
from pbsd.config.training_arguments import REFUSED

FIELDS = {option.name: option for option in dataclasses.fields(TrainingArguments)}
DEFAULTS = {option.name: option.default for option in dataclasses.fields(PBSDConfig)}
LOOP = "read by transformers' loop or optimizer, which run as they are"
TRACKER = "read by transformers' tracker callbacks, which get the logs"
DATA = "read as the data loader is made; a step takes what it gives"
PROCESS = "read as the process group or DDP is set up"
HUB = "read by transformers' push of a saved model, and by pbsd.hub"

WORKS = {
    "output_dir": "tiny/test_training.py",
    "per_device_train_batch_size": "tiny/test_training.py",
    "gradient_accumulation_steps": "tiny/test_training.py",
    "num_train_epochs": LOOP,
    "max_steps": LOOP,
    "learning_rate": LOOP,
    "lr_scheduler_type": "test_a_schedule_that_waits_for_a_metric",
    "lr_scheduler_kwargs": "test_a_schedule_that_waits_for_a_metric",
    "warmup_steps": LOOP,
    "warmup_ratio": LOOP,
    "optim": "test_refused_values",
    "optim_args": LOOP,
    "weight_decay": LOOP,
    "adam_beta1": LOOP,
    "adam_beta2": LOOP,
    "adam_epsilon": LOOP,
    "optim_target_modules": LOOP,
    "average_tokens_across_devices": "the weight of a step is summed over processes; False is refused with several",
    "max_grad_norm": LOOP,
    "bf16": "accelerate's autocast, around the scored forward as around any other",
    "fp16": "accelerate's autocast and scaler, around the scored forward as around any other",
    "tf32": "a switch of torch",
    "activation_checkpointing": "the newer name of gradient_checkpointing",
    "activation_checkpointing_kwargs": "the newer name of gradient_checkpointing_kwargs",
    "gradient_checkpointing": "tiny/test_training.py",
    "gradient_checkpointing_kwargs": "test_it_trains_with",
    "torch_compile": "test_it_trains_with",
    "torch_compile_backend": "test_it_trains_with",
    "torch_compile_mode": "handed to torch.compile",
    "use_cache": "test_use_cache_is_that_of_the_saved_model",
    "torch_empty_cache_steps": "test_it_trains_with",
    "logging_strategy": "test_no_logs_keep_nothing",
    "logging_steps": "tiny/test_alarms.py",
    "logging_first_step": LOOP,
    "logging_dir": TRACKER,
    "log_on_each_node": LOOP,
    "logging_nan_inf_filter": "a loss that is not finite ends training before it is logged",
    "log_level": LOOP,
    "log_level_replica": LOOP,
    "disable_tqdm": LOOP,
    "report_to": "tiny/test_training.py",
    "run_name": TRACKER,
    "project": TRACKER,
    "trackio_space_id": TRACKER,
    "trackio_bucket_id": TRACKER,
    "trackio_static_space_id": TRACKER,
    "eval_strategy": "tiny/test_training.py",
    "eval_steps": "tiny/test_training.py",
    "eval_delay": LOOP,
    "eval_on_start": "test_it_trains_with",
    "save_only_model": "test_save_only_model",
    "save_strategy": "test_the_best_checkpoint_is_saved",
    "save_steps": "test_save_only_model",
    "save_on_each_node": LOOP,
    "save_total_limit": "tiny/test_alarms.py",
    "push_to_hub": "tiny/test_commands.py",
    "hub_token": HUB,
    "hub_private_repo": HUB,
    "hub_model_id": HUB,
    "hub_revision": HUB,
    "load_best_model_at_end": "tiny/test_training.py",
    "metric_for_best_model": "test_refused_values",
    "greater_is_better": "test_the_best_checkpoint_is_saved",
    "ignore_data_skip": LOOP,
    "restore_callback_states_from_checkpoint": LOOP,
    "full_determinism": "a switch of torch",
    "seed": "in the key of every random number of a sample, and what transformers seeds torch with",
    "data_seed": "test_order_of_the_rows",
    "use_cpu": "every test here",
    "accelerator_config": "test_refused_values",
    "dataloader_drop_last": DATA,
    "dataloader_num_workers": "test_it_trains_with",
    "dataloader_pin_memory": DATA,
    "dataloader_persistent_workers": "test_it_trains_with",
    "dataloader_prefetch_factor": "test_it_trains_with",
    "dataloader_multiprocessing_context": DATA,
    "dataloader_in_order": DATA,
    "ddp_find_unused_parameters": "tiny/test_unused_parameters.py",
    "ddp_bucket_cap_mb": PROCESS,
    "ddp_broadcast_buffers": PROCESS,
    "ddp_backend": PROCESS,
    "ddp_timeout": PROCESS,
    "skip_memory_metrics": "test_it_trains_with",
    "do_train": "for scripts: `pbsd train` does",
    "do_eval": "for scripts: `pbsd train` does where there are held-out rows",
    "local_rank": "for an old launcher; the process group says it",
}
"""Where it is tested (a test of this file, or a file under tests/), or why it plainly passes through."""

OTHER = {
    "fsdp": True, "fsdp_config": {"version": 2}, "deepspeed": "zero3.json", "parallelism_config": object(),
    "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0, "liger_kernel_config": {"rope": True},
    "include_num_input_tokens_seen": "all", "per_device_eval_batch_size": 4, "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"], "label_names": ["labels"], "train_sampling_strategy": "group_by_length",
    "length_column_name": "tokens", "remove_unused_columns": True, "hub_strategy": "checkpoint",
    "resume_from_checkpoint": "runs/pbsd/checkpoint-50", "debug": "underflow_overflow",
}  # fmt: skip
"""A value of each refused option that is not its default; of a switch, the other one."""


def test_every_field_is_classified():
    """A new version of transformers that fails here has an option nobody has looked at: does it work, or do harm?"""
    assert not WORKS.keys() & REFUSED.keys()
    assert {name for name in FIELDS if name not in WORKS and name not in REFUSED} == set()
    assert all(refusal.why for refusal in REFUSED.values())


def test_what_is_said_to_be_tested_is():
    tests, here = Path(__file__).parents[1], Path(__file__).read_text()
    missing = []
    for name, where in WORKS.items():
        if where.endswith(".py"):
            missing += [name] * (not re.search(rf"\b{name}\b", (tests / where).read_text()))
        elif where.startswith("test_"):
            body = re.search(rf"\ndef {where}\(.*?(?=\n\n\n|\Z)", here, re.DOTALL)
            parameters = here[: body.start()].rpartition("\n\n\n")[2]
            missing += [name] * (name not in body[0] + parameters)
    assert missing == []


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys()))
def test_a_refused_option_is_named_with_its_reason(config, name):
    other = OTHER.get(name, not DEFAULTS[name])
    with pytest.raises(ValueError, match=rf"^{name}=.* is refused: \w+"):
        config(**{name: other})


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys()))
def test_the_default_of_a_refused_option_is_none(config, name):
    """Written out in a recipe it is let through, and so it is in a copy, whatever transformers has made of it."""
    default = DEFAULTS[name]
    args = config(**({name: default} if default is not dataclasses.MISSING else {name: []}))
    dataclasses.replace(args, max_steps=3)


def test_what_older_versions_make_of_a_missing_fsdp_config(config):
    """As a dictionary and, in a recipe that was written out, as JSON; anything else in it asks for sharding."""
    off = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
    for given in (off, json.dumps(off)):
        config(fsdp_config=given)
    for given in ({**off, "xla": True}, json.dumps({**off, "version": 2})):
        with pytest.raises(ValueError, match="^fsdp_config=.* is refused"):
            config(fsdp_config=given)


def test_a_whole_recipe_of_defaults_is_let_through(config):
    written = json.loads(json.dumps(config().to_dict(), default=str))
    names = {option.name for option in dataclasses.fields(PBSDConfig) if option.init}
    config(**{name: value for name, value in written.items() if name in names and not name.endswith("_token")})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optim": "lomo"}, "optim='lomo'.*adamw_torch"),
        ({"optim": "galore_adamw_layerwise"}, "optim='galore_adamw_layerwise'.*steps once"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config with split_batches=True"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config with dispatch_batches=True"),
        ({"accelerator_config": {"even_batches": False}}, "accelerator_config with even_batches=False"),
        (
            {"accelerator_config": '{"gradient_accumulation_kwargs": {"sync_each_batch": true}}'},
            "accelerator_config with gradient_accumulation_kwargs",
        ),
        ({"metric_for_best_model": "eval_loss"}, "metric_for_best_model='eval_loss'.*greedy_accuracy"),
        (
            {"logging_strategy": "no", "on_alarm": "stop", "save_strategy": "steps"},
            "logging_strategy='no' logs nothing",
        ),
    ],
)
def test_refused_values(config, options, named):
    with pytest.raises(ValueError, match=named):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"accelerator_config": {"use_seedable_sampler": False, "non_blocking": True, "even_batches": True}},
        {"optim": "adafactor", "metric_for_best_model": "eval_greedy_accuracy", "hub_strategy": "end"},
    ],
)
def test_other_values_of_these_train(make_trainer, options):
    make_trainer(max_steps=1, **options).train()


@pytest.mark.parametrize(
    "options",
    [
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"torch_empty_cache_steps": 1, "skip_memory_metrics": False},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3},
        {"eval_on_start": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_it_trains_with(make_trainer, options):
    """The same weights as without; and what the option is for happens."""
    found = []
    for given in ({}, options):
        trainer = make_trainer(eval_rows=HELD_OUT, **given)
        output = trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()]))
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=0)
    measured = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in measured] == ([0] if "eval_on_start" in options else [])
    assert ("train_mem_cpu_peaked_delta" in output.metrics) == ("skip_memory_metrics" in options)


def test_no_logs_keep_nothing(make_trainer):
    """Metrics and samples wait for the log that they are written with: without logs they would only grow."""
    trainer = make_trainer(logging_strategy="no")
    trainer.train()
    assert not trainer._samples and not trainer._metrics.values


def test_use_cache_is_that_of_the_saved_model(make_trainer):
    assert make_trainer(use_cache=True).model.config.use_cache is True
    assert make_trainer().model.config.use_cache is False


def rows_of_a_step(trainer):
    (batch,) = [next(iter(trainer.get_train_dataloader()))]
    return [prompt.row for prompt in batch]


def test_order_of_the_rows(make_trainer):
    assert rows_of_a_step(make_trainer(train_sampling_strategy="sequential")) == [0, 1, 2, 3]
    orders = [rows_of_a_step(make_trainer(data_seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


if "train_sampling_strategy" not in FIELDS:
    test_order_of_the_rows = pytest.mark.skip("this version of transformers has no sequential order")(
        test_order_of_the_rows
    )


@pytest.mark.parametrize("lr_scheduler_type", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_waits_for_a_metric(make_trainer, lr_scheduler_type):
    """It waits for accuracy, of which more is better; its other options (lr_scheduler_kwargs) are the user's."""
    if lr_scheduler_type == "greedy" and "activation_checkpointing" not in FIELDS:
        pytest.skip("younger than the lowest version")
    trainer = make_trainer(
        eval_rows=HELD_OUT, lr_scheduler_type=lr_scheduler_type, eval_strategy="steps", eval_steps=1,
        lr_scheduler_kwargs={"patience": 7},
    )  # fmt: skip
    trainer.train()
    assert (trainer.lr_scheduler.mode, trainer.lr_scheduler.patience) == ("max", 7)
    assert trainer.args.metric_for_best_model == "accuracy"


def test_the_best_checkpoint_is_saved(make_trainer, tmp_path):
    """By accuracy, with greater_is_better: the first evaluation is the best so far, and one that is no better is not
    saved."""
    trainer = make_trainer(
        eval_rows=HELD_OUT, save_strategy="best", eval_strategy="steps", eval_steps=1, max_steps=3, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert trainer.args.greater_is_better is True


def test_save_only_model(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2, save_only_model=True).train()
    files = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert "model.safetensors" in files and "optimizer.pt" not in files


def test_predict_and_search_name_what_to_use(make_trainer):
    trainer = make_trainer(eval_rows=HELD_OUT)
    assert isinstance(trainer, Trainer)
    with pytest.raises(ValueError, match=r"predict\(\).*evaluate\(rows\)"):
        trainer.predict(HELD_OUT)
    with pytest.raises(ValueError, match=r"hyperparameter_search\(\).*pbsd compare"):
        trainer.hyperparameter_search()


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (arXiv 2405.15682, eq. 2 to 4) with beta 0.9: gradients at y = (1 - beta) z + beta x; z takes
    the steps, x is their mean. The parameters hold y in training mode, x in evaluation mode."""

    def __init__(self, parameters, lr):
        super().__init__([*parameters], {"lr": lr, "train_mode": False, "steps": 0})

    def train(self):
        self._move(True, 0.1)  # y = x + 0.1 (z - x)

    def eval(self):
        self._move(False, 1 - 1 / 0.9)  # x = y + (1 - 1 / 0.9) (z - y)

    @torch.no_grad()
    def _move(self, train_mode, weight):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != train_mode else []:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight)
            group["train_mode"] = train_mode

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "a step in evaluation mode"
            group["steps"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 - 1 / 0.9)  # x
                z.add_(p.grad, alpha=-group["lr"])
                p.lerp_(z, 1 / group["steps"])
                p.lerp_(z, 0.1)  # y


@pytest.fixture
def schedule_free(make_trainer, tokenizer):
    def make(**options):
        trainer = make_trainer(
            model=tiny_model(tokenizer), eval_rows=HELD_OUT, max_steps=4, **{"learning_rate": 0.3, **options}
        )
        trainer.optimizer = ScheduleFree(trainer.model.parameters(), trainer.args.learning_rate)
        return trainer

    return make


def flat(source):
    return torch.cat([p.detach().flatten() for p in source])


def points(trainer):
    """x and y by the optimizer's z and what the parameters hold."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    (group,) = optimizer.param_groups
    z, held = flat(optimizer.state[p]["z"] for p in group["params"]), flat(group["params"])
    return (held.lerp(z, 1 - 1 / 0.9), held) if group["train_mode"] else (held, held.lerp(z, 0.1))


def test_a_schedule_free_optimizer(schedule_free, tmp_path):
    """Sampling and scoring see y, evaluation and what is saved x, and the two are not the same."""
    trainer = schedule_free(save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=1)
    at = {"sampled": [], "evaluated": []}
    sample = trainer.engine.sampler.sample

    def watched(model, requests, params):
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        trains = trainer.args.sampling_params() == params and trainer.is_in_train and not watched.evaluating
        at["sampled" if trains else "evaluated"].append(optimizer.param_groups[0]["train_mode"])
        return sample(model, requests, params)

    measure = trainer.measure_accuracy

    def measured(*args):
        watched.evaluating = True
        try:
            return measure(*args)
        finally:
            watched.evaluating = False

    watched.evaluating = False
    object.__setattr__(trainer.engine.sampler, "sample", watched)
    trainer.measure_accuracy = measured
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["health/sampler_gap"] < 1e-5 for entry in logs)
    assert at["sampled"] and set(at["sampled"]) == {True} and at["evaluated"] and set(at["evaluated"]) == {False}
    x, y = points(trainer)
    assert (x - y).abs().max() > 1e-4
    torch.testing.assert_close(flat(trainer.model.parameters()), x)
    saved = type(trainer.model).from_pretrained(tmp_path / "run" / "checkpoint-4")
    torch.testing.assert_close(flat(saved.parameters()), x)


def test_a_schedule_free_run_resumes_bit_for_bit(schedule_free, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = schedule_free(**options)
    whole.train()
    resumed = schedule_free(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(flat(whole.model.parameters()), flat(resumed.model.parameters()))
