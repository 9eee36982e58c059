"""oneDNN's products against `F.linear`; where torch comes without oneDNN, what is built around them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pbsd import products
from pbsd.products import fast_linears, linear


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    if not torch.backends.mkldnn.is_available():
        monkeypatch.setattr(products, "_product", F.linear)


@pytest.fixture
def calls(monkeypatch):
    """How many products oneDNN took."""
    made = []
    plain = products._product
    monkeypatch.setattr(products, "_product", lambda *tensors: made.append(1) or plain(*tensors))
    return made


def tensors(shape=(3, 5, 8), bias=True, frozen=()):
    torch.manual_seed(0)
    made = {"x": torch.randn(*shape), "weight": torch.randn(6, shape[-1]), "bias": torch.randn(6) if bias else None}
    for name, tensor in made.items():
        if tensor is not None:
            tensor.requires_grad_(name not in frozen)
    return made


def result(function, made):
    """The output, and a gradient (or None) for every input."""
    output = function(made["x"], made["weight"], made["bias"])
    wanted = {name: t for name, t in made.items() if t is not None and t.requires_grad}
    if wanted:
        torch.manual_seed(1)
        found = torch.autograd.grad(output, list(wanted.values()), torch.randn_like(output))
        return output, dict(zip(wanted, found, strict=True))
    return output, {}


@pytest.mark.parametrize("shape", [(7, 8), (3, 5, 8), (1, 1, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("bias",), ("x", "weight", "bias")])
def test_values_and_gradients_are_those_of_torch(shape, bias, frozen, calls):
    made = tensors(shape, bias, frozen)
    ours, plain = result(linear, made), result(F.linear, made)
    assert calls
    torch.testing.assert_close(ours, plain)


def test_a_transposed_weight_and_a_view_of_an_input():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 4, 8).transpose(0, 1), torch.randn(8, 6)
    torch.testing.assert_close(linear(x, weight.t()), F.linear(x, weight.t()))
    torch.testing.assert_close(linear(x[..., ::2], weight[::2].t()), F.linear(x[..., ::2], weight[::2].t()))


@pytest.mark.parametrize("frozen", [(), ("weight", "bias"), ("x",)])
def test_no_more_is_kept_for_the_backward_pass_than_by_torch(frozen):
    def kept(function):
        made = tensors(frozen=frozen)
        sizes = []
        with saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
            function(made["x"], made["weight"], made["bias"])
        return sum(sizes)

    assert kept(linear) <= kept(F.linear)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: {name: t.double() for name, t in made.items()},
        lambda made: {name: t.bfloat16() for name, t in made.items()},
        lambda made: {**made, "x": made["x"][0, 0]},
        lambda made: {**made, "x": made["x"][:0]},
    ],
    ids=["float64", "bfloat16", "one row", "no rows"],
)
def test_what_is_left_to_torch(change, calls):
    made = change(tensors(frozen=("x", "weight", "bias")))
    assert torch.equal(linear(*made.values()), F.linear(*made.values()))
    assert not calls


def test_autocast_and_other_machines_are_left_to_torch(calls, monkeypatch):
    made = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*made.values()).dtype == torch.bfloat16
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    linear(*made.values())
    with fast_linears(layer := nn.Linear(2, 2)):
        assert "forward" not in vars(layer)
    assert not calls


class Own(nn.Linear):
    """A subclass, as adapters and quantized layers are."""


def test_a_model_computes_by_it_within_the_block_alone(calls):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), Own(6, 4))
    x = torch.randn(5, 8)
    plain = model(x)
    assert not calls
    with fast_linears(model), fast_linears(model):
        found = model(x)
        found.sum().backward()
    assert len(calls) == 2  # forward, and the weight's gradient: x needs none
    torch.testing.assert_close(found, plain)
    del calls[:]
    model(x)
    copy.deepcopy(model)(x)
    assert not calls
    assert not any("forward" in vars(layer) for layer in model)


def test_the_block_ends_with_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(KeyError), fast_linears(model):
        raise KeyError
    assert "forward" not in vars(model)


def test_checkpointed_layers_compute_again_in_the_block(calls):
    model = nn.Linear(8, 6)
    x = torch.randn(5, 8, requires_grad=True)
    with fast_linears(model):
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert len(calls) == 4  # forward twice, and two gradients
    torch.testing.assert_close(x.grad, model.weight.sum(0).expand(5, 8))


def test_which_machines_take_it(monkeypatch, tmp_path):
    """Never an Intel processor, nor one without 512-bit vectors, nor one that cannot be told."""
    monkeypatch.undo()
    facts = tmp_path / "cpuinfo"

    def taken(vendor, capability):
        facts.write_text(f"vendor_id\t: {vendor}\n")
        products.onednn_is_faster.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(products, "CPU_FACTS", facts)
        return products.onednn_is_faster()

    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    assert taken("AuthenticAMD", "AVX512")
    assert taken("AuthenticAMD", "AVX512_VNNI")
    assert not taken("AuthenticAMD", "AVX2")
    assert not taken("GenuineIntel", "AVX512")
    assert taken("AuthenticAMD", "AVX512")
    for target, name, value in (
        (products, "CPU_FACTS", tmp_path / "nowhere"),
        (torch.backends.mkl, "is_available", lambda: False),
        (torch.backends.mkldnn, "is_available", lambda: False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            products.onednn_is_faster.cache_clear()
            assert not products.onednn_is_faster()
    products.onednn_is_faster.cache_clear()
