"""The sampler: right distribution, random numbers that belong to the row, stop tokens by what ended the row."""

import numpy as np
import pytest
import torch
from scipy import stats

from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler
from pbsd.scoring import ScoringGroup, score_frozen

EOS, PAD = 1, 0


def sampler(max_batch_size=64, eos=(EOS,), pad=PAD):
    return TransformersSampler(eos_token_ids=eos, pad_token_id=pad, max_batch_size=max_batch_size)


PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13)]


def requests(n=4, key=(0,)):
    return [SampleRequest(prompt, n, (*key, row)) for row, prompt in enumerate(PROMPTS)]


def test_first_token_follows_the_models_distribution(model):
    """Chi-square of 4,000 first tokens against the softmax; at this key the p-value must not be absurd."""
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a random model is nearly uniform; make it peaked
        probs = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double().softmax(-1).numpy()
    (samples,) = sampler(1000).sample(model, [SampleRequest(PROMPTS[0], 4000, (7,))], SamplingParams(1))
    observed = np.bincount([sample.ids[0] for sample in samples], minlength=len(probs))
    common = probs * 4000 >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * 4000
    assert common.sum() >= 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # The control: the same counts against another distribution are rejected.
    wrong = np.roll(expected, 1)
    assert stats.chisquare(observed, wrong).pvalue < 1e-6


def test_top_k_and_temperature_reach_the_draw(model):
    (samples,) = sampler().sample(model, [SampleRequest(PROMPTS[0], 50, (0,))], SamplingParams(1, top_k=2))
    best = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].topk(2).indices.tolist()
    assert {sample.ids[0] for sample in samples} == set(best)
    cold = SamplingParams(1, temperature=1e-4)
    (samples,) = sampler().sample(model, [SampleRequest(PROMPTS[0], 20, (0,))], cold)
    assert {sample.ids[0] for sample in samples} == {best[0]}


def test_a_request_does_not_depend_on_its_company(model):
    together = sampler().sample(model, requests(), SamplingParams(10))
    small = sampler(max_batch_size=3).sample(model, requests(), SamplingParams(10))
    alone = [sampler().sample(model, [request], SamplingParams(10))[0] for request in requests()]
    ids = [[sample.ids for sample in group] for group in together]
    assert ids == [[sample.ids for sample in group] for group in small]
    assert ids == [[sample.ids for sample in group] for group in alone]
    # Completions of one prompt differ, and so does another key.
    assert len(set(ids[0])) == 4
    other = sampler().sample(model, requests(key=(1,)), SamplingParams(10))
    assert ids != [[sample.ids for sample in group] for group in other]


def test_greedy_equals_generate(model):
    greedy = sampler().sample(model, requests(n=1), SamplingParams(8, temperature=0.0))
    for prompt, (sample,) in zip(PROMPTS, greedy, strict=True):
        output = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert list(sample.ids) == output.tolist()[: len(sample.ids)]


def test_recorded_logprobs_are_the_scorers(model):
    """At temperature 0.5 and top-p 0.9 the recorded log-probabilities are still the policy's own."""
    groups = sampler().sample(model, requests(), SamplingParams(6, temperature=0.5, top_p=0.9))
    scored = score_frozen(
        model,
        [ScoringGroup(prompt, tuple(s.ids for s in group)) for prompt, group in zip(PROMPTS, groups, strict=True)],
        pad_id=PAD,
        max_tokens=10_000,
    )
    recorded = [value for group in groups for sample in group for value in sample.logprobs]
    assert recorded == pytest.approx([value for row in scored for value in row], abs=1e-5)


def test_every_stop_token_ends_a_row_and_stays_in_it(model):
    """A quarter of the vocabulary stops, `pad` among it: rows end at their first stop token, which is kept."""
    stops = range(0, 99, 4)
    groups = sampler(eos=stops, pad=4).sample(model, requests(n=20), SamplingParams(6))
    samples = [sample for group in groups for sample in group]
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert all(token % 4 for token in sample.ids[:-1])
        assert (sample.ids[-1] % 4 == 0) == sample.finished
        assert sample.finished or len(sample.ids) == 6
        assert len(sample.ids) == len(sample.logprobs)


def test_the_models_own_generation_config_does_not_change_the_policy(model):
    """A shipped repetition penalty would sample another policy than the one that is scored; it is back afterwards."""
    plain = sampler().sample(model, requests(), SamplingParams(10))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(40))
    assert sampler().sample(model, requests(), SamplingParams(10)) == plain
    assert model.generation_config.repetition_penalty == 5.0
    asked = SamplingParams(10, generation_kwargs={"suppress_tokens": list(range(40))})
    assert sampler().sample(model, requests(), asked) != plain


def test_training_mode_is_restored(model):
    model.train()
    sampler().sample(model, requests(n=1), SamplingParams(2))
    assert model.training


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SamplingParams(0), "max_completion_length"),
        (lambda: SamplingParams(4, temperature=-1.0), "temperature"),
        (lambda: SamplingParams(4, top_p=0.0), "top_p"),
    ],
)
def test_bad_parameters(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_generation_kwargs_that_would_change_our_draw_are_refused(model):
    with pytest.raises(ValueError, match="num_beams"):
        sampler().sample(model, requests(), SamplingParams(4, generation_kwargs={"num_beams": 2}))
