"""Trainers with the constructor users know from TRL, and the checks that belong before training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from accelerate.utils import gather_object
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    set_seed,
)

from pbsd import rewards
from pbsd.adapters import is_peft_model, starts_as_identity
from pbsd.chat import ChatTemplate
from pbsd.config import (
    GRPOConfig,
    OnlineDPOConfig,
    OPSDConfig,
    PBSDConfig,
    RFTConfig,
    RolloutConfig,
    SDFTConfig,
    SDPOConfig,
    SFTConfig,
    TeacherConfig,
)
from pbsd.config.base import ContextRule, as_dict
from pbsd.config.sharding import check_model
from pbsd.data import PromptDataset
from pbsd.engine import Engine
from pbsd.loading import load_model, model_folder, prepare_adapter, tokenizer_folder
from pbsd.methods import make_method, method_name
from pbsd.model_checks import (
    Windows,
    check_completion_fits,
    check_distributions,
    check_ids,
    check_mass,
    fixed_forward,
    warn_of_lost_steps,
)
from pbsd.render import Renderer
from pbsd.rollouts import TransformersSampler
from pbsd.scoring import enable_scoring
from pbsd.teacher import Teacher
from pbsd.trainer import MethodTrainer

logger = logging.getLogger(__name__)


class SelfDistillationTrainer(MethodTrainer):
    """Post-train a causal language model by the method whose options are given.

    Args:
        model: a name on the hub, a folder, a base of the laboratory (`lab/arithmetic-0.2m` is packaged), or a
            loaded model. Any of them may be a PEFT adapter: then the teacher starts as its base with the adapter.
        args: the options, which choose the method: `PBSDConfig()`, `OPSDConfig()` and so on.
        train_dataset: rows with `prompt` (text or chat messages), `privileged_context` (text, messages or null) and the
            columns the reward functions read; a `datasets.Dataset` or a list of dicts.
        eval_dataset: held-out rows for `evaluate()`.
        reward_funcs: one or several of: a function of TRL's signature, a built-in's name (`math`, `tool_call`,
            `format`), `"package.module:function"`, or a mapping with a built-in's options.
        processing_class: the tokenizer; defaults to the model's own.
        peft_config: train an adapter of this configuration instead of all weights; on top of the model's own adapter,
            if it has one, which without `peft_config` is trained on.

    Raises:
        ValueError: options, rows, rewards or tokenizers that do not fit together, before any training.
    """

    config_class: ClassVar[type[RolloutConfig]] = RolloutConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RolloutConfig | None = None,
        train_dataset: Iterable[Any] | None = None,
        eval_dataset: Iterable[Any] | None = None,
        reward_funcs: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args if args is not None else self.config_class()
        if not isinstance(args, self.config_class):
            raise ValueError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got a {type(args).__name__}; "
                "SelfDistillationTrainer takes the options of any method"
            )
        method_name(args)
        # The adapter's first weights are random: the seed must be set before it is made.
        set_seed(args.seed)
        reward_functions = resolve_rewards(reward_funcs, args)
        student = load_model(model, args)
        check_model(student)
        tokenizer = load_tokenizer(model, args, processing_class)
        eos_ids, pad_id = stop_and_pad_ids(student, make_renderer(tokenizer, args).chat)
        barred_ids = check_ids(student, tokenizer, eos_ids, pad_id)
        check_completion_fits(student, args)
        came_with_adapter = is_peft_model(student)
        student = prepare_adapter(student, peft_config, as_dict(args.model_init_kwargs).get("revision"))
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("the model has no trainable parameter: load its adapter with is_trainable=True")
        fixed_forward(student, args)
        warn_of_lost_steps(student, args)
        if getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing:
            # Without it a frozen embedding gives a checkpointed block no input that asks for gradient.
            student.enable_input_require_grads()
        enable_scoring(student)
        check_distributions(student, args)
        teacher = make_teacher(student, args, tokenizer, None if came_with_adapter else peft_config)

        windows = Windows.of(args, student, teacher.external if teacher is not None else None)
        renderer = make_renderer(tokenizer, args, windows)
        required = sorted(set().union(*(rewards.required_columns(function) for function in reward_functions)))

        def prepare_rows(rows: Any, *, training: bool = False) -> PromptDataset:
            dataset = PromptDataset.from_rows(
                rows,
                make_renderer(tokenizer, args, windows, training=True) if training else renderer,
                required=required,
                drop_overlong=args.overlong == "drop",
                context=args.context_rule if training else ContextRule(),
                seed=args.seed,
                needs_context=training and args.reads_context,
            )
            return windows.fit(dataset, args, training=training)

        train_prompts = None
        if train_dataset is not None:
            train_prompts = prepare_rows(train_dataset, training=True)
            check_mass(student, barred_ids, train_prompts.prompts)
        eval_prompts = None if eval_dataset is None else prepare_rows(eval_dataset)
        engine = Engine(
            student=student,
            teacher=teacher,
            tokenizer=tokenizer,
            renderer=windows.limit(renderer),
            sampler=TransformersSampler(
                eos_token_ids=eos_ids,
                pad_token_id=pad_id,
                max_batch_size=args.generation_batch_size,
                barred_ids=barred_ids,
            ),
            reward_funcs=reward_functions,
            args=args,
            pad_id=pad_id,
            gather=gather_object,
        )
        super().__init__(
            student,
            args,
            engine=engine,
            method=make_method(args, engine),
            train_dataset=train_prompts,
            eval_dataset=eval_prompts,
            prepare_rows=prepare_rows,
            callbacks=callbacks,
            optimizers=optimizers,
        )


class PBSDTrainer(SelfDistillationTrainer):
    config_class = PBSDConfig


class OPSDTrainer(SelfDistillationTrainer):
    config_class = OPSDConfig


class SDFTTrainer(SelfDistillationTrainer):
    config_class = SDFTConfig


class SDPOTrainer(SelfDistillationTrainer):
    config_class = SDPOConfig


class GRPOTrainer(SelfDistillationTrainer):
    config_class = GRPOConfig


class OnlineDPOTrainer(SelfDistillationTrainer):
    config_class = OnlineDPOConfig


class RFTTrainer(SelfDistillationTrainer):
    config_class = RFTConfig


class SFTTrainer(SelfDistillationTrainer):
    config_class = SFTConfig


def load_tokenizer(model: str | PreTrainedModel, args: RolloutConfig, given: Any = None) -> PreTrainedTokenizerBase:
    """The given tokenizer (of a processor, its own), or the model's."""
    if isinstance(given, ProcessorMixin):
        tokenizer = given.tokenizer
        if given.chat_template and not tokenizer.chat_template:
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = given.chat_template
        return tokenizer
    if given is not None:
        return given
    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError("the model does not say where its tokenizer lies: pass processing_class=tokenizer")
    folder = tokenizer_folder(model_folder(name))
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=args.trust_remote_code)
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        raise ValueError(f"no tokenizer could be loaded from {folder!r} ({error}): pass processing_class") from error


def resolve_rewards(reward_funcs: Any, args: RolloutConfig) -> Sequence[Callable[..., Any]]:
    """One list of reward functions, with the options' time limit and workers."""
    specs = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if reward_funcs is None or not specs:
        raise ValueError(
            "reward_funcs is missing: pass a function, a built-in's name (math, tool_call, format) or both"
        )
    if args.reward_weights is not None and len(args.reward_weights) != len(specs):
        raise ValueError(f"reward_weights has {len(args.reward_weights)} numbers for {len(specs)} reward functions")
    pool = {"timeout": args.reward_timeout, "workers": args.reward_workers}
    named = [{"name": spec} if isinstance(spec, str) and ":" not in spec else spec for spec in specs]
    return [
        rewards.resolve(
            {**pool, **spec} if isinstance(spec, dict) and ":" not in spec["name"] else spec,
            timeout=args.reward_timeout,
        )
        for spec in named
    ]


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, args: RolloutConfig, windows: Windows | None = None, *, training: bool = False
) -> Renderer:
    """The options' renderer; for training rows it also renders the completion they hold, where the method learns it.
    With the models' `windows` it refuses longer texts before it reads them."""
    return Renderer(
        tokenizer=tokenizer,
        teacher_prompt_template=args.teacher_prompt_template,
        student_thinking_prefix=args.student_thinking_prefix,
        teacher_thinking_prefix=args.teacher_thinking_prefix,
        chat_template_kwargs=as_dict(args.chat_template_kwargs),
        tools_template=args.tools_template,
        max_prompt_length=args.max_prompt_length,
        max_teacher_prompt_length=args.max_teacher_prompt_length,
        positions=None if windows is None else windows.longest,
        max_reference_length=args.max_reference_length if training else None,
    )


def stop_and_pad_ids(model: Any, chat: ChatTemplate) -> tuple[list[int], int]:
    """Every token that ends a completion, and the id that fills padding.

    Completions end at the tokens that end the assistant's turn in the chat template, and at those that the tokenizer or
    the model's generation config names. Tokens that the model has no embedding of are never sampled and left out.
    Masks come from lengths, so padding with a stop token, or with any token, changes nothing; it is said once.

    Raises ValueError where no token is left that would end a completion.
    """
    tokenizer = chat.tokenizer
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = {*([named] if isinstance(named, int) else named or []), *chat.stop_ids()}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    size = len(model.get_input_embeddings().weight)
    reachable = {stop for stop in stops if stop < size}
    if not reachable:
        found = f"the model has {size} embeddings and cannot sample {sorted(stops)}" if stops else "none is named"
        raise ValueError(
            "no completion would end: of the stop tokens of chat template, tokenizer and the model's generation "
            f"config, {found}: set tokenizer.eos_token or model.generation_config.eos_token_id, or resize the "
            "embeddings"
        )
    if stops - reachable:
        logger.warning("stop tokens %s are beyond the model's %d embeddings: left out", sorted(stops - reachable), size)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = min(reachable)
        logger.warning("the tokenizer has no pad token: stop token %d fills padding (masks come from lengths)", pad)
    elif pad in reachable:
        logger.warning("the pad token %d is also a stop token: harmless here, since masks come from lengths", pad)
    return sorted(reachable), pad


def make_teacher(
    student: nn.Module, args: RolloutConfig, tokenizer: PreTrainedTokenizerBase, peft_config: Any = None
) -> Teacher | None:
    """The teacher that the options ask for, or the reference (the initial weights), or neither. `peft_config`: of an
    adapter that was made on a whole model."""
    if args.teacher_kind is None:
        return None
    adapter_is_new = starts_as_identity(peft_config)
    if not isinstance(args, TeacherConfig):
        return Teacher(args.teacher_kind, student, adapter_is_new=adapter_is_new)
    return Teacher(
        args.teacher_kind,
        student,
        external=load_external_teacher(args, tokenizer, student) if args.teacher_model else None,
        adapter_is_new=adapter_is_new,
        ema_decay=args.ema_decay,
        refresh_steps=args.teacher_refresh_steps,
        refresh_margin=args.teacher_refresh_margin,
        refresh_measure=args.teacher_refresh_measure,
        refresh_blend=args.teacher_refresh_blend,
    )


def load_external_teacher(args: TeacherConfig, tokenizer: PreTrainedTokenizerBase, student: Any) -> nn.Module:
    """The external teacher's model. Raises ValueError unless its tokenizer gives the student's ids.

    Models of a family often pad one vocabulary to different sizes: the ids of a teacher's padding, which the student
    does not have and no tokenizer gives, are cut off.
    """
    assert args.teacher_model is not None
    other = load_tokenizer(args.teacher_model, args)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours != theirs:
        different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise ValueError(
            f"teacher_model {args.teacher_model!r} has another vocabulary ({len(theirs)} tokens, the student's has "
            f"{len(ours)}; {len(different)} differ, e.g. {different[0]!r}): log-probabilities of the same ids "
            "could not be compared. Choose a teacher of the student's model family"
        )
    teacher = load_model(args.teacher_model, args)
    student_ids, teacher_ids = (len(model.get_input_embeddings().weight) for model in (student, teacher))
    if teacher_ids < student_ids:
        raise ValueError(
            f"teacher_model {args.teacher_model!r} has {teacher_ids} embeddings and the student {student_ids} for "
            f"{len(ours)} tokens: the student could sample ids that the teacher has not. Cut the student's padding "
            f"once, with model.resize_token_embeddings({teacher_ids}) and save_pretrained"
        )
    if teacher_ids > student_ids:
        teacher.resize_token_embeddings(student_ids)
    return teacher
