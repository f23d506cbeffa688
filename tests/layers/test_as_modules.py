"""What users do to modules works on the head and on NEXT: hooks, copies, EMA, compiling, quantising, adapters."""

import copy

import pytest
import torch
from torch import nn

import nextreid
from nextreid.layers import NEXTHead

B, M, N, D = 3, 3, 6, 16
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
HOOKED = [
    "",
    *("semantic_experts", "semantic_experts.score_router", "semantic_experts.threshold_router"),
    *("structure_experts", "structure_experts.routers.0"),
    *("mmfa", "mmfa.semantic", "mmfa.structure", "mmfa.semantic.attention", "mmfa.semantic.attention.q"),
    *("mmfa.structure.attention.proj", "mmfa.semantic.norm", "mmfa.semantic.ffn", "mmfa.semantic.ffn.0"),
]
MODES = pytest.mark.parametrize("mode", ["training", "evaluation", "inference"])


@pytest.fixture
def head():
    torch.manual_seed(0)
    return NEXTHead(D, M, num_heads=4, mlp_ratio=2.0, ffn_ratio=2.0)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(B, M, D), torch.randn(B, M, N, D), torch.randn(B, M, D), PRESENT


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nextreid.create_model("next_tiny").eval()


@pytest.fixture
def batch(model):
    torch.manual_seed(1)
    return torch.randn(2, 3, 3, *model.img_size), torch.randn(2, 3, model.embed_dim)


@MODES
@pytest.mark.parametrize("name", HOOKED)
def test_a_hook_fires_once_and_may_change_the_output(head, inputs, name, mode):
    head.train(mode == "training")
    calls = []
    with torch.set_grad_enabled(mode != "inference"):
        torch.manual_seed(2)
        plain = head(*inputs)
        module = head.get_submodule(name)
        seen = module.register_forward_hook(lambda *_: calls.append(name))
        head(*inputs)
        seen.remove()
        assert calls == [name]
        if name in ("semantic_experts", "structure_experts"):
            return  # they return tuples, whose parts other modules read
        module.register_forward_hook(lambda _, given, out: out * torch.linspace(0.5, 2, out.shape[-1]))
        torch.manual_seed(2)
        assert not torch.allclose(head(*inputs), plain)


def test_gradients_reach_hooks_and_every_parameter(head, inputs):
    grads = []
    inputs[0].requires_grad_()
    head.mmfa.semantic.register_full_backward_hook(lambda *given: grads.append(given[2][0].abs().sum()))
    head(*inputs).square().sum().backward()
    assert len(grads) == 1 and grads[0] > 0
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_deep_copy_is_equal_and_apart(head, inputs):
    head.eval()
    twin = copy.deepcopy(head)
    expected = head(*inputs)
    assert torch.equal(twin(*inputs), expected)
    with torch.no_grad():
        twin.structure_experts.experts.fc1_weight.add_(1)
    assert torch.equal(head(*inputs), expected) and not torch.equal(twin(*inputs), expected)


def test_an_ema_copy_follows(head, inputs):
    head.eval()
    average = torch.optim.swa_utils.AveragedModel(head, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(head)
    torch.testing.assert_close(average(*inputs), head(*inputs))
    before = head.semantic_experts.experts.fc1_weight.detach().clone()
    with torch.no_grad():
        head.semantic_experts.experts.fc1_weight.add_(1)
    average.update_parameters(head)
    torch.testing.assert_close(average.module.semantic_experts.experts.fc1_weight, before + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(inputs, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    head = NEXTHead(D, M, num_heads=4, num_semantic_experts=2, num_structure_experts=2).train(training)
    with torch.set_grad_enabled(training):
        compiled = torch.compile(head, fullgraph=True, backend="eager")
        torch.manual_seed(3)
        found = compiled(*inputs)
        torch.manual_seed(3)
        torch.testing.assert_close(found, head(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated in favour of torchao, which is another package
def test_dynamic_quantisation_of_linear_layers(model, batch):
    with torch.no_grad():
        exact = model(*batch)
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        found = quantised(*batch)
    names = [name for name, module in quantised.named_modules() if "quantized" in type(module).__module__]
    assert {"head.mmfa.semantic.attention.q", "head.mmfa.structure.ffn.0", "head.structure_experts.routers.0"} <= set(
        names
    )
    assert not torch.equal(found, exact)
    assert torch.cosine_similarity(found, exact, dim=-1).min() > 0.95


class LowRank(nn.Module):
    """An adapter around a linear layer, as LoRA's: it has a forward of its own and no ``weight``."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["attention.q", "attention.proj", "ffn.0"])
def test_an_adapter_is_run_by_its_own_forward_and_learns(model, batch, name):
    plain = model(*batch)
    aggregator = model.head.mmfa.semantic
    adapter = LowRank(aggregator.get_submodule(name))
    parent, _, child = name.rpartition(".")
    setattr(aggregator.get_submodule(parent), child, adapter)
    model.requires_grad_(False)
    adapter.up.requires_grad_(True)
    adapted = model(*batch)
    assert not torch.allclose(adapted, plain)
    adapted.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    assert adapter.up.weight.grad.any()


def test_another_router_takes_the_place_of_a_structure_router(head, inputs):
    head.eval()
    head.structure_experts.routers[0] = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3))
    parts = head(*inputs, return_parts=True)
    expected = head.structure_experts.routers[0](parts["tokens"]).softmax(-1).flatten(1, 2)
    torch.testing.assert_close(parts["weights"], expected)
