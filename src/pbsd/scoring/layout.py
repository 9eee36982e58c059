"""Where the tokens of prompts and completions lie in the rows of one forward pass. Torch only.

Packed: a row holds [prompt | c1 | c2 | ...] of one group. Every completion's positions go on where the prompt ends, and
it sees the prompt and itself; so the prompt is computed once for all its completions. Padded: a row holds a prompt and
one completion, and the prompt is computed again for every completion.

In both, the last token of a completion is left out, as nothing is predicted from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pbsd.records import Ids

PROMPT, PADDING = -1, -2
"""Numbers of the tokens that belong to no completion."""


@dataclass(frozen=True, slots=True)
class ScoringGroup:
    """A prompt and the completions to score under it, as token ids."""

    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        """Tokens of its row when packed."""
        return len(self.prompt_ids) + sum(len(completion) - 1 for completion in self.completion_ids)

    def split(self, max_tokens: int) -> Iterator[ScoringGroup]:
        """Groups of its completions, in order, of at most `max_tokens` packed (one completion each at least)."""
        part: list[Ids] = []
        tokens = len(self.prompt_ids)
        for completion in self.completion_ids:
            if part and tokens + len(completion) - 1 > max_tokens:
                yield ScoringGroup(self.prompt_ids, tuple(part))
                part, tokens = [], len(self.prompt_ids)
            part.append(completion)
            tokens += len(completion) - 1
        if part:
            yield ScoringGroup(self.prompt_ids, tuple(part))


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows for a forward pass, and where each completion token is predicted in them.

    Attributes:
        lengths: tokens of each completion.
        ids_RL: tokens, rows padded right.
        positions_RL: position of each token in its own sequence; the padding's are 0.
        completion_RL: number of the token's completion in its row, or PROMPT or PADDING.
        source_M: for each completion token, in the order of the groups, the place in the flattened rows of the token
            before it.
        targets_M: the completion tokens' ids.
    """

    lengths: tuple[int, ...]
    ids_RL: Tensor
    positions_RL: Tensor
    completion_RL: Tensor
    source_M: Tensor
    targets_M: Tensor

    def visible(self, query: Tensor, key: Tensor, row: Tensor | int, *, window: int | None = None) -> Tensor:
        """Whether the token at place `query` of a row sees the one at `key`: the rule of the mask, for any index
        tensors that broadcast. `window` is a sliding window's width, in positions of the sequence."""
        completion, position = self.completion_RL, self.positions_RL
        same_sequence = (completion[row, key] == PROMPT) | (completion[row, key] == completion[row, query])
        distance = position[row, query] - position[row, key]
        sees = same_sequence & (distance >= 0)
        return sees if window is None else sees & (distance < window)

    def mask(self, *, window: int | None = None) -> Tensor:
        """[R, 1, L, L] boolean, True where the query (third axis) sees the key."""
        rows, length = self.ids_RL.shape
        place = torch.arange(length, device=self.ids_RL.device)
        row = torch.arange(rows, device=self.ids_RL.device)
        return self.visible(place[:, None], place, row[:, None, None], window=window)[:, None]

    def to(self, device: torch.device) -> Layout:
        tensors = (self.ids_RL, self.positions_RL, self.completion_RL, self.source_M, self.targets_M)
        return Layout(self.lengths, *(tensor.to(device) for tensor in tensors))


def make_layout(groups: Sequence[ScoringGroup], *, pad_id: int) -> Layout:
    """One row per group. With groups of one completion these are padded rows, which causal attention alone makes exact:
    padding lies to the right, out of sight."""
    length = max(group.tokens for group in groups)
    ids, positions, completions = ([[fill] * length for _ in groups] for fill in (pad_id, 0, PADDING))
    source: list[int] = []
    for row, group in enumerate(groups):
        end = prompt = len(group.prompt_ids)
        ids[row][:end] = group.prompt_ids
        positions[row][:end] = range(end)
        completions[row][:end] = [PROMPT] * end
        for number, completion in enumerate(group.completion_ids):
            assert prompt and completion, "nothing to score"
            place, end = end, end + len(completion) - 1
            ids[row][place:end] = completion[:-1]
            positions[row][place:end] = range(prompt, prompt + end - place)
            completions[row][place:end] = [number] * (end - place)
            source += [row * length + prompt - 1, *range(row * length + place, row * length + end)]
    targets = [token for group in groups for completion in group.completion_ids for token in completion]
    lengths = tuple(len(completion) for group in groups for completion in group.completion_ids)
    tables = (ids, positions, completions, source, targets)
    return Layout(lengths, *(torch.tensor(table) for table in tables))


def singles(groups: Sequence[ScoringGroup]) -> list[ScoringGroup]:
    """The same completions with a group for each."""
    return [ScoringGroup(group.prompt_ids, (completion,)) for group in groups for completion in group.completion_ids]
