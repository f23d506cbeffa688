"""Gated attention: the forms agree with loops, with each other and with themselves in other types and graphs."""

import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.reference_ops import gated_attention_reference
from nextreid.ops import gated_attention, gated_attention_torch, use_backend

SCRIPT = Path(__file__).with_name("kernel_cases_gated_attention.py")
_spec = importlib.util.spec_from_file_location("cases", SCRIPT)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
arguments, distance, outputs = cases.arguments, cases.distance, cases.outputs


def in_loops(query, residual, update=None, gate=None, keys=None):
    """Eq. 7 and 11 one number at a time."""
    query, residual, update, gate = (None if t is None else t.detach() for t in (query, residual, update, gate))
    (batch, rows, width), length = query.shape, residual.shape[1]
    experts = next((t.shape[1] for t in (update, gate) if t is not None), 1)
    contexts = torch.zeros(batch, experts, rows, width, dtype=torch.float64)
    for b in range(batch):
        for e in range(experts):
            exists = [keys is None or bool(keys[b, t] if keys.dim() == 2 else keys[b, e, t]) for t in range(length)]
            tokens = []
            for t in (t for t in range(length) if exists[t]):
                token = [float(residual[b, t, d]) for d in range(width)]
                if update is not None:
                    token = [x + float(update[b, e, t, d]) for d, x in enumerate(token)]
                if gate is not None:
                    token = [float(gate[b, e, t]) * x for x in token]
                tokens.append(token)
            for r in range(rows):
                masses = [math.exp(sum(float(query[b, r, d]) * x for d, x in enumerate(token))) for token in tokens]
                for mass, token in zip(masses, tokens, strict=True):
                    for d, x in enumerate(token):
                        contexts[b, e, r, d] += mass / sum(masses) * x
    return contexts


KINDS = {
    "update": (None, "plain", "swapped", "strided"),
    "gate": (None, "mixed", "hard", "ones", "zeros"),
    "keys": (None, "sample", "set", "all", "none"),
}


@pytest.mark.parametrize("keys", KINDS["keys"])
@pytest.mark.parametrize("gate", KINDS["gate"])
@pytest.mark.parametrize("update", KINDS["update"])
def test_the_reference_is_the_equations(update, gate, keys):
    made = arguments(experts=2, rows=2, length=4, width=3, update=update, gate=gate, keys=keys)
    assert distance(gated_attention_reference(**made), in_loops(**made)) < 1e-13


@settings(deadline=None, max_examples=150)
@given(
    st.fixed_dictionaries(
        {
            **{name: st.sampled_from(kinds) for name, kinds in KINDS.items()},
            "batch": st.integers(1, 3),
            "experts": st.integers(1, 8),
            "rows": st.integers(1, 5),
            "length": st.integers(1, 12),
            "width": st.integers(1, 9),
            "seed": st.integers(0, 9999),
        }
    )
)
def test_the_torch_form_and_all_its_gradients_are_the_references(sizes):
    made = arguments(**sizes)
    right = outputs(gated_attention_reference, made)
    scale = max(float(value.abs().max()) for value in right.values())
    for name, value in outputs(gated_attention_torch, made).items():
        assert value.shape == right[name].shape
        # Gradients that cancel to nothing are judged by the size of those that do not.
        assert float((value - right[name]).abs().max()) <= 1e-12 * scale, name


@pytest.mark.parametrize("form", [gated_attention_reference, gated_attention_torch])
def test_a_gate_of_zero_has_a_gradient_and_a_place_in_the_softmax(form):
    made = arguments(rows=1, experts=1, length=2, gate="zeros")
    with torch.no_grad():
        made["gate"][..., 1] = 1
    found = outputs(form, made)
    token = made["residual"][0, 1] + made["update"][0, 0, 1]
    logit = float(made["query"][0, 0].detach() @ token.detach())
    share = math.exp(logit) / (1 + math.exp(logit))
    assert torch.allclose(found["context"][0, 0, 0], share * token)
    assert (found["gate"][..., 0] != 0).all()


@pytest.mark.parametrize("form", [gated_attention_reference, gated_attention_torch])
def test_sets_without_keys_give_zeros_and_pass_no_gradient(form):
    made = arguments(keys="set")
    made["keys"][1] = True
    for name, value in outputs(form, made).items():
        assert value.isfinite().all()
        assert (value[0] == 0).all() and (value[1] != 0).any(), name


@pytest.mark.parametrize("form", [gated_attention_reference, gated_attention_torch])
@pytest.mark.parametrize("empty", ["batch", "rows", "length", "width"])
@pytest.mark.parametrize("update", ["plain", None])
def test_sizes_of_zero(form, empty, update):
    made = arguments(**{empty: 0}, update=update, keys="sample")
    found = outputs(form, made)
    for name, value in found.items():
        assert name == "context" or value.shape == made[name].shape
        assert (value == 0).all()
    assert found["context"].shape == (*(0 if empty == size else n for size, n in SIZES),)


SIZES = (("batch", 2), ("experts", 3), ("rows", 4), ("width", 6))


def test_only_the_gradients_that_are_needed():
    made = arguments(keys="sample")
    right = outputs(gated_attention_reference, made)
    for name in cases.FLOATS:
        alone = {k: v.detach() if v is not None and k != name else v for k, v in made.items()}
        found = outputs(gated_attention_torch, alone, [name])
        assert distance(found[name], right[name]) < 1e-12


class Counter(TorchDispatchMode):
    """Operator calls, and tensors at least as large as the tokens that they wrote."""

    def __init__(self, large):
        super().__init__()
        self.large, self.calls, self.written = large, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if isinstance(out, torch.Tensor) and returned and returned[0].alias_info is None:
            self.calls += 1
            self.written += out.numel() >= self.large
        return out


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("update", ["plain", "swapped"])
def test_the_torch_form_writes_the_tokens_once_and_their_gradient_once(update, device):
    batch, experts, rows, length, width = 4, 3, 24, 96, 64
    sizes = dict(batch=batch, experts=experts, rows=rows, length=length, width=width)
    made = arguments(**sizes, update=update, keys="sample", dtype=torch.float32)
    made = {name: value.detach().to(device).requires_grad_(name != "keys") for name, value in made.items()}
    tokens, product = batch * experts * length * width, 2 * batch * experts * rows * length * width
    with Counter(tokens) as forward, FlopCounterMode(display=False) as flops:
        context = gated_attention_torch(**made)
    assert (forward.written, flops.get_total_flops()) == (1, 2 * product)
    with Counter(tokens) as backward, FlopCounterMode(display=False) as flops:
        torch.autograd.grad(context, [made[name] for name in cases.FLOATS], torch.empty_like(context))
    assert (backward.written, flops.get_total_flops()) == (1, 4 * product)
    assert forward.calls + backward.calls <= 34


@pytest.mark.parametrize("gates", [1, 3])
def test_sets_without_updates_share_the_product_with_the_tokens(gates):
    made = arguments(experts=gates, rows=8, length=32, width=16, update=None, dtype=torch.float32)
    with FlopCounterMode(display=False) as flops:
        gated_attention_torch(**made)
    assert flops.get_total_flops() == (1 + gates) * 2 * 2 * 8 * 32 * 16


@pytest.mark.parametrize("update", ["plain", None])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_the_references(kind, update):
    made = arguments(rows=24, length=64, width=96, update=update, keys="sample", dtype=kind)
    right = outputs(gated_attention_reference, cases.in_double(made))
    plain, found = outputs(gated_attention_reference, made), outputs(gated_attention_torch, made)
    for name, value in found.items():
        assert value.dtype == kind
        assert distance(value, right[name]) <= 2 * distance(plain[name], right[name]), name


@pytest.mark.parametrize("seed", range(5))
def test_the_softmax_of_half_precision_is_in_float32(seed):
    """Logits of 15 to 17, exact products of the first channel: in bfloat16 they would be off by up to 0.06."""
    rng = torch.Generator().manual_seed(seed)
    made = arguments(rows=1, length=64, width=2, update=None, dtype=torch.bfloat16, seed=seed)
    with torch.no_grad():
        made["query"].copy_(torch.tensor([1.0, 0.0]))
        made["residual"][..., 0].uniform_(15, 16, generator=rng)
        made["gate"].uniform_(1, 1.0625, generator=rng)
    right = gated_attention_reference(**cases.in_double(made))[..., 1]
    assert distance(gated_attention_torch(**made)[..., 1], right) < 2**-7


@pytest.mark.parametrize("mixed", [False, True])
def test_autocast_takes_the_products_in_its_type_and_the_softmax_in_float32(mixed):
    made = arguments(rows=24, length=64, width=96, keys="sample", dtype=torch.float32)
    if mixed:  # residual stream in float32, an expert's product in bfloat16
        made["update"] = made["update"].detach().bfloat16().requires_grad_()
    right = outputs(gated_attention_reference, cases.in_double(made))
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = outputs(gated_attention_reference, made), outputs(gated_attention_torch, made)
    assert found["context"].dtype == torch.bfloat16
    for name, value in found.items():
        assert name == "context" or value.dtype == made[name].dtype
        assert distance(value, right[name]) <= 2 * distance(plain[name], right[name]), name


def test_autocast_leaves_double_precision_alone():
    made = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_attention_torch(**made).dtype == torch.float64


def test_a_gate_may_be_of_another_type_than_the_tokens():
    made = arguments(dtype=torch.bfloat16)
    made["gate"] = made["gate"].detach().float().requires_grad_()
    for form in (gated_attention_torch, gated_attention_reference):
        found = outputs(form, made)
        assert found["context"].dtype == torch.bfloat16 and found["gate"].dtype == torch.float32


@pytest.mark.parametrize("update", ["plain", "swapped", None])
@pytest.mark.parametrize("keys", ["sample", "set", None])
def test_one_graph_with_gradients(update, keys):
    torch._dynamo.reset()
    compiled = torch.compile(gated_attention, fullgraph=True, backend="aot_eager")
    made = arguments(update=update, keys=keys)
    right = outputs(gated_attention_reference, made)
    for name, value in outputs(compiled, made).items():
        assert distance(value, right[name]) < 1e-12, name


@pytest.mark.slow
def test_one_inductor_graph_for_all_batches():
    torch._dynamo.reset()
    compiled = torch.compile(gated_attention, fullgraph=True, dynamic=True)
    for batch in (2, 3, 5):
        made = arguments(batch=batch, keys="sample")
        right = outputs(gated_attention_reference, made)
        for name, value in outputs(compiled, made).items():
            assert distance(value, right[name]) < 1e-12, name


class Layer(torch.nn.Module):
    def forward(self, query, residual, update, gate, keys):
        return gated_attention(query, residual, update, gate, keys)


@pytest.mark.parametrize("learns", [False, True])
def test_export_with_any_batch_saved_and_loaded(learns):
    made = [v.detach().requires_grad_(learns and v.is_floating_point()) for v in arguments(keys="sample").values()]
    batch = torch.export.Dim("batch", min=1, max=99)
    names = ("query", "residual", "update", "gate", "keys")
    program = torch.export.export(Layer(), tuple(made), dynamic_shapes={name: {0: batch} for name in names})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    other = arguments(batch=5, keys="sample", seed=1)
    assert distance(torch.export.load(file).module()(*other.values()), gated_attention_reference(**other)) < 1e-12


def test_the_backend_decides():
    made = arguments()
    for name in ("auto", "torch"):
        with use_backend(name):
            assert gated_attention(**made).equal(gated_attention_torch(**made))
    with use_backend("triton"), pytest.raises(ValueError, match=r"float64.*use 'auto' or 'torch'"):
        gated_attention(**made)


def test_a_second_derivative_is_rejected():
    made = arguments()
    (first,) = torch.autograd.grad(gated_attention_torch(**made).square().sum(), made["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.zeros(2, 4)}, r"query \(B, R, D\) and residual \(B, L, D\) must agree"),
        ({"query": torch.zeros(2, 4, 5)}, "must agree in B and D"),
        ({"residual": torch.zeros(3, 7, 6)}, "must agree in B and D"),
        ({"update": torch.zeros(2, 3, 6, 6)}, r"update must be \(B, E, L, D\) = \(2, E, 7, 6\)"),
        ({"update": torch.zeros(2, 7, 6)}, r"update must be"),
        ({"update": torch.zeros(2, 2, 7, 6)}, r"gate must be \(B, E, L\) = \(2, 2, 7\); got \(2, 3, 7\)"),
        ({"gate": torch.zeros(2, 7)}, r"gate must be \(B, E, L\)"),
        ({"update": None, "gate": torch.zeros(2, 3, 6)}, r"gate must be \(B, E, L\) = \(2, 3, 7\)"),
        ({"gate": torch.ones(2, 3, 7, dtype=torch.bool)}, "gate must be floating-point; got torch.bool"),
        ({"keys": torch.ones(2, 7)}, "keys must be bool; got torch.float32"),
        ({"keys": torch.ones(2, 2, 7, dtype=torch.bool)}, r"keys must be .*\(2, 3, 7\); got \(2, 2, 7\)"),
        ({"update": torch.zeros(2, 3, 7, 6, dtype=torch.bfloat16)}, "one type outside autocast.*update torch.bfloat16"),
        ({"residual": torch.zeros(2, 7, 6, dtype=torch.int64)}, "must be floating-point; got .*residual torch.int64"),
        ({"residual": torch.zeros(2, 7, 6, device="meta")}, "one device; got .*residual meta"),
    ],
)
@pytest.mark.parametrize("form", [gated_attention, gated_attention_torch])
def test_what_does_not_go_together_is_named(form, change, words):
    with pytest.raises(ValueError, match=words):
        form(**{**arguments(dtype=torch.float32), **change})


@pytest.fixture(scope="module")
def interpreted():
    """How each kernel case failed, if it did. Triton reads TRITON_INTERPRET when it is imported: another process."""
    pytest.importorskip("triton")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_kernels_in_the_interpreter(interpreted, name):
    assert interpreted[name] == ""


@pytest.mark.slow
@pytest.mark.slow
def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory(tmp_path):
    """The interpreter takes what the compiler rejects; the compiler needs no GPU."""
    pytest.importorskip("triton", minversion="3.4")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "compile"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)
    assert len(memory) == 6
    for name, size in memory.items():
        # What any GPU of compute capability 8.0 and up has for the widths that `auto` takes; then an A100's.
        assert size <= (163 if "1024" in name else 99) * 1024, name
