"""transformers' training loop, with what it leaves to its own evaluation and loss put right for a trainer without them:
sharding is refused, a schedule-free optimizer is told when weights are evaluated, DDP searches for unused parameters
only where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import Trainer

from pbsd.config.sharding import check_accelerator, check_devices, check_environment
from pbsd.scoring import ScoringGroup, enable_scoring, score
from pbsd.scoring.forward import language_model
from pbsd.scoring.router import RouterBalance, router_balance


class Loop(Trainer):
    """A `Trainer` whose optimizer is in one of two modes.

    A schedule-free optimizer (https://arxiv.org/abs/2405.15682) trains at one point, y, and is evaluated at another, x,
    an average: its `train()` and `eval()` put them into the parameters. All that training does is done at y: sampling,
    scoring, moving the teacher. Evaluation, checkpoints and the finished model are x.
    """

    _trains_at_y = False
    balance: RouterBalance | None = None

    def create_accelerator_and_postprocess(self) -> None:
        check_devices(self.args.n_gpu)
        check_environment()
        super().create_accelerator_and_postprocess()
        check_accelerator(self.accelerator)

    def training_weights(self) -> None:
        """Put the weights that are trained into the model, until `evaluation_weights` or the end of training."""
        self._trains_at_y = True
        self._optimizer_mode("train")

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside the block the model has the weights that its optimizer evaluates, where these are others."""
        if not self._trains_at_y:
            yield
            return
        self._trains_at_y = False
        self._optimizer_mode("eval")
        try:
            yield
        finally:
            self.training_weights()

    def _optimizer_mode(self, mode: str) -> None:
        if callable(change := getattr(self.optimizer, mode, None)):
            change()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        if self._trains_at_y:
            self._trains_at_y = False
            self._optimizer_mode("eval")
        return output

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._trains_at_y = False  # checkpoints hold evaluation weights

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.evaluation_weights():
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        if self.balance is not None:
            self._balanced.output_router_logits = True  # as it was given
        try:
            with self.evaluation_weights():
                super().save_model(*args, **kwargs)
        finally:
            if self.balance is not None:
                self._balanced.output_router_logits = False

    def balance_experts(self, student: nn.Module) -> None:
        """Take over the auxiliary loss of the routers of a mixture of experts that asks for one. Its own forward is
        told not to compute it: that would be for the sampler's passes too."""
        lm = language_model(student)
        self.balance = router_balance(lm)
        if self.balance is None:
            return
        if not enable_scoring(student).chunked:
            raise ValueError(
                f"output_router_logits asks for the auxiliary loss of the router of {type(lm).__name__}, which is "
                'scored by full logits: train without it, with model_init_kwargs {"output_router_logits": false}'
            )
        self._balanced = lm.config.get_text_config()
        self._balanced.output_router_logits = False

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError: rows have prompts, and no labels to predict."""
        raise ValueError(
            "predict() runs transformers' evaluation of a loss, which pbsd's trainers do not have: use evaluate(rows) "
            "or measure_accuracy(rows), or `pbsd evaluate`"
        )

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError: a search needs a new model, teacher and data for every trial."""
        raise ValueError(
            "hyperparameter_search() makes a new model for every trial and leaves the teacher with the old one: use "
            "`pbsd compare`, which runs each trial by itself"
        )


def unused_parameters(model: nn.Module, pad_id: int) -> list[str]:
    """Names of trainable parameters that the graph of a scoring forward pass does not reach. It is over one token, so
    that experts count as unused unless every token reaches them."""
    was_training = model.training
    model.eval()  # no random numbers are used up, and nothing is hidden by activation checkpointing
    scores = score(model, [ScoringGroup((pad_id,), ((pad_id,),))], pad_id=pad_id, entropy=False)
    model.train(was_training)
    reached, seen, stack = set(), set(), [scores.logprobs_BT.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), torch.Tensor):
            reached.add(id(variable))
        stack += [following for following, _ in node.next_functions]
    return [name for name, own in model.named_parameters() if own.requires_grad and id(own) not in reached]
