"""Whether a model can be sampled, scored and trained as the options ask, found out before training.

`fixed_forward`: the scored policy is the sampled one. `check_ids`, `Windows`: ids and positions exist.
`check_distributions`: the objective can have the distributions it compares. `warn_of_lost_steps`: weights will move.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedTokenizerBase

from pbsd.config import RolloutConfig, TeacherConfig
from pbsd.data import PromptDataset
from pbsd.records import Prompt
from pbsd.render import OverlongError, Renderer
from pbsd.scoring import enable_scoring

_NOISE_WORDS = ("drop", "jitter")
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 0.02
"""Differences of logits, in their standard deviations, that rounding may explain, in float32 and in half precision."""
_FORWARDS = 4
_SMALL_MASS, _LARGE_MASS = 1e-4, 1e-2
"""Of rows without a token, in probability of the next token: to be told, and to be refused."""

logger = logging.getLogger(__name__)


# Random forward passes


def fixed_forward(model: nn.Module, args: RolloutConfig) -> None:
    """Switch off what makes the model's forward random while it is trained (`disable_dropout`), and measure that
    nothing is left: forward passes of one input in training mode are equal, and equal to the sampler's.

    Dropout, layer drop and router jitter are modules, or numbers of modules or of configurations that the forward
    reads. The latter are set to 0 only where the former were not all, as they are saved with the model; none where the
    model reads it when it is sampled, too.

    Raises ValueError where something random is left, with the module's name. With `disable_dropout=False` it is a
    warning.
    """
    if next(model.parameters()).is_meta:
        return
    off = _switch_off(model, _noise_of_modules(model)) if args.disable_dropout else []
    found = random_module(model)
    if found and args.disable_dropout:
        off += _switch_off(model, _noise_of_configs(model))
        found = random_module(model)
    if off:
        logger.warning(
            "switched off, so that scores are those of the sampled policy (disable_dropout): %s", ", ".join(off)
        )
    if not found:
        return
    if args.disable_dropout:
        raise ValueError(
            f"{found}, and what makes it random is no option that is known here: scores would not be those of the "
            "sampled policy. Switch it off in the model (disable_dropout=False lets it pass, with a warning)"
        )
    logger.warning("disable_dropout=False: %s, so scores are not those of the sampled policy", found)


_Places = Mapping[str, Sequence[tuple[Any, str, float]]]
"""By what they are called: the objects, attributes and values that hold one number."""


def _switch_off(model: nn.Module, places: _Places) -> list[str]:
    """Set the numbers to 0, but those that the model also reads when it is sampled. Returns what was set."""
    was_training, expected, off = model.training, _probe(model.eval()), []
    for name, own in places.items():
        for holder, attribute, _ in own:
            setattr(holder, attribute, 0.0)
        if (_probe(model) - expected).abs().max() <= _TOLERANCE * expected.std():
            off.append(name)
            continue
        for holder, attribute, value in own:
            setattr(holder, attribute, value)
    model.train(was_training)
    return off


def _noise_of_modules(model: nn.Module) -> _Places:
    places: dict[str, list[tuple[Any, str, float]]] = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            if module.p:
                places.setdefault(f"dropout {module.p:g}", []).append((module, "p", module.p))
            continue
        for name, value in vars(module).items():
            if _is_noise(name, value):
                places.setdefault(f"{type(module).__name__}.{name} {value:g}", []).append((module, name, value))
    return places


def _noise_of_configs(model: nn.Module) -> _Places:
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    return {
        f"{type(config).__name__}.{name} {value:g}": [(config, name, value)]
        for config in configs.values()
        for name, value in vars(config).items()
        if _is_noise(name, value)
    }


def _is_noise(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and any(word in name for word in _NOISE_WORDS)


def random_module(model: Any) -> str:
    """Where forward passes of one input differ, in training mode or from one in evaluation mode, in words; empty where
    they do not, but for rounding. The state of random numbers is left as it was."""
    was_training = model.training
    with _own_random_numbers(next(model.parameters()).device):
        try:
            expected, again = _probe(model.eval()), _probe(model)
            trained = [_probe(model.train()) for _ in range(_FORWARDS)]
            scale = expected.std().clamp_min(1e-6).item()
            noise = (expected - again).abs().max().item() / scale
            gap = max((logits - expected).abs().max().item() for logits in trained) / scale
            tolerance = _TOLERANCE if next(model.parameters()).dtype.itemsize >= 4 else _TOLERANCE_HALF
            if not gap > max(tolerance, 4 * noise):
                return ""
            return (
                f"{_first_difference(model)} gives other values in training mode than when it is sampled "
                f"(logits differ by {gap:.2g} standard deviations)"
            )
        finally:
            model.train(was_training)


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """Logits of a few tokens, float32, in the model's mode."""
    embedding = model.get_input_embeddings().weight
    length = min(16, positions(model) or 16)
    ids = torch.randint(embedding.shape[0], (1, length), generator=torch.Generator().manual_seed(0))
    logits: Tensor = model(input_ids=ids.to(embedding.device), use_cache=False).logits
    return logits.float()


def _first_difference(model: Any) -> str:
    """The first module, innermost, that makes different outputs of equal inputs: in evaluation mode, then in training
    mode, a few times."""
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    found: list[str] = []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        if name not in seen:
            seen[name] = [part.clone() for part in inputs], [part.clone() for part in outputs]
        elif _equal(inputs, seen[name][0]) and not _equal(outputs, seen[name][1]):
            found.append(f"{name} ({type(module).__name__})")

    hooks = [
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: record(name, module, args, kwargs, output), with_kwargs=True
        )
        for name, module in model.named_modules()
        if name
    ]
    try:
        _probe(model.eval())
        for _ in range(_FORWARDS):
            _probe(model.train())
            if found:
                return found[0]
        return type(model).__name__
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [part for item in value for part in _tensors(item)] if isinstance(value, list | tuple) else []


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    state = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)


# Ids


def check_ids(
    model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int], pad_id: int
) -> tuple[int, ...]:
    """The rows of the head that no token of the tokenizer has and that do not stop: what must not be sampled.

    Raises ValueError where the tokenizer gives ids that the embedding does not have.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    head = getattr(model.get_output_embeddings(), "weight", None)
    names = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    if beyond := sorted(id_ for id_ in names if id_ >= rows):
        shown = ", ".join(f"{names[id_]!r} ({id_})" for id_ in beyond[:3])
        mend = (
            "set tokenizer.pad_token = tokenizer.eos_token, as padding is never read"
            if beyond == [tokenizer.pad_token_id]
            else f"give the model rows for them (model.resize_token_embeddings({max(beyond) + 1})) and train these, or "
            "use the tokenizer that the model was trained with"
        )
        raise ValueError(f"{len(beyond)} tokens lie beyond the model's {rows} embeddings: {shown}: {mend}")
    if pad_id >= rows:
        raise ValueError(
            f"the pad token's id {pad_id} lies beyond the model's {rows} embeddings: set tokenizer.pad_token = "
            "tokenizer.eos_token, as padding is never read"
        )
    width = rows if head is None else max(rows, head.shape[0])
    return tuple(id_ for id_ in range(width) if (id_ not in names and id_ not in stop_ids) or id_ >= rows)


@torch.no_grad()
def check_mass(model: Any, barred_ids: Sequence[int], prompts: Sequence[Prompt]) -> None:
    """Raises ValueError where the rows that are not sampled hold more than a hundredth of the next token's probability
    after these prompts: what is sampled without them would not be the policy that is scored."""
    if not barred_ids or not prompts or next(model.parameters()).is_meta:
        return
    device = model.get_input_embeddings().weight.device
    was_training = model.training
    model.eval()
    try:
        masses = []
        for prompt in prompts[:4]:
            ids = torch.tensor([prompt.student_ids[-256:]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, -64:].float()
            masses.append(logits.softmax(-1)[:, list(barred_ids)].sum(-1))
    finally:
        model.train(was_training)
    mass = torch.cat(masses).mean().item()
    where = f"{len(barred_ids)} rows of the embedding have no token in the tokenizer, e.g. {barred_ids[0]}"
    if mass > _LARGE_MASS:
        raise ValueError(
            f"{where}, and hold {mass:.0%} of the next token's probability: what is sampled without them is not the "
            "policy that is scored. Use the tokenizer that the model was trained with, or cut the rows off where they "
            f"are the last ones (model.resize_token_embeddings({barred_ids[0]}), save_pretrained)"
        )
    if mass > _SMALL_MASS:
        logger.warning("%s, and hold %.2g of the next token's probability: they are not sampled", where, mass)


# Positions


def positions(model: Any) -> int | None:
    """How many tokens the model has positions for; None if they have no end (ALiBi, state spaces) or none is named."""
    config = model.config.get_text_config()
    attention = getattr(config, "attn_config", None)
    if getattr(config, "alibi", False) or getattr(attention, "alibi", False):
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return None


def has_position_table(model: Any) -> bool:
    """Whether positions are rows of a table, beyond which there is nothing: others were only never trained."""
    window, tokens = positions(model), model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module is not tokens)
    return window is not None and any(window <= table.num_embeddings <= window + 8 for table in tables)


@dataclass(frozen=True, slots=True)
class Windows:
    """What fits the models' positions. A prompt and its completions must; None: any does.

    Attributes:
        student, teacher: positions of the models that play the roles.
        completion: tokens after a prompt, at most.
        student_completion: the same for the student in training, who may also finish what the teacher began.
    """

    student: int | None
    teacher: int | None
    completion: int
    student_completion: int

    @classmethod
    def of(cls, args: RolloutConfig, student: Any, teacher: Any = None) -> Windows:
        completion, window = args.max_completion_length, positions(student)
        begun = completion // 2 if getattr(args, "measures_handover", False) else 0
        other = window if teacher is None else positions(teacher)
        return cls(window, other, completion, completion + begun)

    @property
    def longest(self) -> int | None:
        """Of both models; None where one has no end."""
        return None if self.student is None or self.teacher is None else max(self.student, self.teacher)

    def limit(self, renderer: Renderer) -> Renderer:
        """The renderer for the teacher's prompts that are made in training, which are counted where they do not fit."""
        if self.teacher is None:
            return renderer
        room, budget = self.teacher - self.completion, renderer.max_teacher_prompt_length
        return replace(renderer, max_teacher_prompt_length=room if budget is None else min(room, budget))

    def fit(self, dataset: PromptDataset, args: RolloutConfig, *, training: bool) -> PromptDataset:
        """The dataset without the rows that do not fit, which are counted as dropped.

        Raises OverlongError for such a row with overlong='error', ValueError where none fits.
        """
        kept = []
        for prompt in dataset.prompts:
            reason = self._excess(prompt, args, training)
            if not reason:
                kept.append(prompt)
            elif args.overlong == "error":
                raise OverlongError(
                    f"row {prompt.row}: {reason}. Lower max_completion_length, shorten the row, or set overlong='drop' "
                    "to leave such rows out; a model of rotary positions may be told to go beyond them: "
                    "model_init_kwargs={'max_position_embeddings': N}"
                )
        dropped = len(dataset.prompts) - len(kept)
        if not kept:
            raise ValueError(
                f"none of {dropped} rows fits the model's positions with max_completion_length="
                f"{args.max_completion_length}: lower it, or shorten the rows"
            )
        if dropped:
            logger.warning("%d of %d rows were dropped: over the model's positions", dropped, len(dataset.prompts))
        return PromptDataset(kept, dataset.dropped + dropped)

    def _excess(self, prompt: Prompt, args: RolloutConfig, training: bool) -> str:
        completion = self.student_completion if training else self.completion
        roles = [("student", self.student, len(prompt.student_ids), completion)]
        if training and isinstance(args, TeacherConfig):
            roles.append(("teacher", self.teacher, len(prompt.teacher_ids), self.completion))
        for role, window, length, more in roles:
            if window is not None and length + more > window:
                begun = ", begun by the teacher and finished" if more > self.completion else ""
                return (
                    f"the {role}'s prompt of {length} tokens and a completion of up to {more} (max_completion_length="
                    f"{self.completion}{begun}) are more than the {window} positions of the {role}'s model"
                )
        return ""


def check_completion_fits(model: Any, args: RolloutConfig) -> None:
    """Raises ValueError where the longest completion leaves no position for a prompt."""
    window, completion = positions(model), args.max_completion_length
    if window is not None and completion >= window:
        raise ValueError(
            f"max_completion_length is {completion} and the model has {window} positions, so no prompt would fit "
            "before a completion: lower max_completion_length"
        )


# The objective, and the weights


def check_distributions(student: nn.Module, args: RolloutConfig) -> None:
    """Raises ValueError where the objective compares whole distributions that this model's cannot be kept."""
    may_use = getattr(args, "may_use", None)
    direct = may_use is not None and may_use("direct")
    if not direct and getattr(args, "distillation_mode", "sampled_token") == "sampled_token":
        return
    capability = enable_scoring(student)
    if not capability.chunked:
        option = "direct_coef=0 (or preset='pairs' or 'published')" if direct else "distillation_mode='sampled_token'"
        raise ValueError(
            f"this objective compares whole next-token distributions, and the model's cannot be kept "
            f"({capability.reason}): set {option}, or train another kind of adapter (LoRA) or all weights"
        )


def warn_of_lost_steps(model: nn.Module, args: RolloutConfig) -> None:
    """Say how many of the trained weights in half precision an AdamW step of about the learning rate rounds away.

    A step is lost where it is less than half the distance to the next number: learning_rate < 2^(e - p), of a weight
    of 2^e to 2^(e + 1) in a type of p significant bits (8 in bfloat16, 11 in float16).
    """
    lost = total = 0.0
    kinds = set()
    for parameter in model.parameters():
        if not parameter.requires_grad or parameter.is_meta or parameter.dtype not in (torch.bfloat16, torch.float16):
            continue
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // 4096)].float()
        half_distance = torch.finfo(parameter.dtype).eps / 2 * torch.exp2(some.abs().log2().floor())
        lost += parameter.numel() * (half_distance > args.learning_rate).float().mean().item()
        total += parameter.numel()
        kinds.add(str(parameter.dtype).removeprefix("torch."))
    if total and lost > total / 10:
        logger.warning(
            "%.0f%% of the trained weights are too large for %s to hold a step of learning_rate %g: AdamW's steps are "
            "about as large as that, and are rounded away. Load the model in float32 (model_init_kwargs={'dtype': "
            "'float32'}, with bf16=True for the speed), train an adapter, or raise learning_rate",
            100 * lost / total,
            " and ".join(sorted(kinds)),
            args.learning_rate,
        )
