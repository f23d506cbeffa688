"""The routing operation: its forms against naive loops and each other, and what may never change."""

import importlib.util
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

from benchmarks.speed.reference_ops import route_reference
from nextreid.ops import route, route_torch, use_backend

SCRIPT = Path(__file__).parent / "kernel_cases_routing.py"
_spec = importlib.util.spec_from_file_location("kernel_cases_routing", SCRIPT)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
NAMES, arguments, cast, leaves, gradients, assert_same = (
    getattr(cases, name) for name in ("NAMES", "arguments", "cast", "leaves", "gradients", "assert_same")
)

FORMS = [route_reference, route_torch]


def naive(hidden, weight, bias, sigma, tokens=None, text=None, captioned=None, mix=None, present=None):
    """Eq. 2, 3, 5 and 6 in Python numbers."""

    def gelu(x):
        return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))

    batch, modalities, count, experts, width = hidden.shape
    out = {name: torch.zeros(batch, experts, modalities, count, dtype=torch.float64) for name in NAMES}
    for b in range(batch):
        for e in range(experts):
            for n in range(count):
                betas = [0.0] * modalities
                for m in range(modalities):
                    if text is not None and (captioned is None or captioned[b, e, m]):
                        token, caption = tokens[b, m, n].tolist(), text[b, e, m].tolist()
                        betas[m] = sum(x * y for x, y in zip(token, caption, strict=True)) / (
                            math.hypot(*token) * math.hypot(*caption)
                        )
                spoken = text is not None and (captioned is None or bool(captioned[b, e].any()))
                for m in range(modalities):
                    score = bias[e, m].item() + sum(
                        gelu(hidden[b, m, n, e, h].item()) * weight[e, m, h].item() for h in range(width)
                    )
                    if spoken and mix is not None:
                        w1, b1, w2, b2 = (part[e].tolist() for part in mix)
                        score += b2[m]
                        for k, row in enumerate(w1):
                            inner = b1[k] + sum(w * beta for w, beta in zip(row, betas, strict=True))
                            score += w2[m][k] * gelu(inner)
                    out["gamma"][b, e, m, n] = score
                    out["beta"][b, e, m, n] = betas[m]
                    alive = present is None or bool(present[b, m])
                    out["mask"][b, e, m, n] = float(alive and score > sigma[b, e, m].item())
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("without", [(), ("text",), ("mix",), ("captioned", "present")], ids=str)
def test_forms_equal_naive_loops(form, without):
    given = arguments(**dict.fromkeys(without, False))
    want, got = naive(**given), form(**given)
    for name in NAMES:
        if name == "beta" and "text" in without:
            assert got.beta is None
        else:
            assert_same(getattr(got, name), want[name], 1e-13, name)
    assert 0 < got.mask.sum() < got.mask.numel()


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        dict(
            b=st.integers(1, 3),
            m=st.integers(1, 5),
            n=st.integers(1, 6),
            e=st.integers(1, 8),
            h=st.integers(1, 5),
            d=st.integers(2, 6),
            k=st.integers(1, 7),
            text=st.booleans(),
            captioned=st.booleans(),
            mix=st.booleans(),
            present=st.booleans(),
            seed=st.integers(0, 99),
            temperature=st.sampled_from([1.0, 0.3]),
        )
    )
)
def test_forms_agree_in_outputs_and_all_gradients(sizes):
    given = arguments(**sizes)
    want, want_gradients = gradients(route_reference, given)
    got, got_gradients = gradients(route_torch, given)
    for name in NAMES:
        if getattr(want, name) is None:
            assert getattr(got, name) is None
        else:
            assert_same(getattr(got, name), getattr(want, name), 1e-12, name)
    for name, gradient in want_gradients.items():
        assert_same(got_gradients[name], gradient, 1e-12, name)


@pytest.mark.parametrize("form", FORMS)
def test_mask_is_hard_and_its_gradient_that_of_a_sigmoid(form):
    given = arguments(temperature=0.5)
    out = form(**given)
    assert out.mask.unique().tolist() == [0.0, 1.0]
    upstream = torch.randn(out.mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    to_bias, to_sigma = torch.autograd.grad((out.mask * upstream).sum(), (given["bias"], given["sigma"]))
    soft = torch.sigmoid((out.gamma - given["sigma"][..., None]) / 0.5)
    want = upstream * given["present"][:, None, :, None] * soft * (1 - soft) / 0.5
    assert_same(to_bias, want.sum((0, 3)), 1e-12)
    assert_same(to_sigma, -want.sum(-1), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_scores_on_the_threshold_go(form):
    """Eq. 3 is a strict inequality."""
    given = arguments(text=False, present=False)
    given["sigma"] = form(**given).gamma[..., 0].detach()
    assert not form(**given).mask[..., 0].any()


@pytest.mark.parametrize("form", FORMS)
def test_without_a_caption_the_scores_are_those_without_text(form):
    given = arguments(b=3, e=2, m=2)
    given["captioned"] = torch.tensor([[[True, False]] * 2, [[False, False]] * 2, [[False, False], [True, True]]])
    silent = form(**{**given, "text": None})
    out = form(**given)
    spoken = given["captioned"].any(2)
    assert torch.equal(out.gamma[~spoken], silent.gamma[~spoken])
    assert not (out.gamma[spoken] == silent.gamma[spoken]).any()
    assert not out.beta[~given["captioned"]].any() and out.beta[given["captioned"]].all()


@pytest.mark.parametrize("form", FORMS)
def test_an_uncaptioned_zero_feature_gets_no_gradient(form):
    """Its cosine divides by 1e-12: a gradient that slips through is enormous."""
    given = arguments()
    with torch.no_grad():
        given["text"][~given["captioned"]] = 0
    _, got = gradients(form, given)
    assert not got["text"][~given["captioned"]].any()
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e4 for gradient in got.values())


@pytest.mark.parametrize("form", FORMS)
def test_absent_modalities_are_never_sampled(form):
    given = arguments(sigma=torch.full((2, 2, 3), -100.0, dtype=torch.float64))
    out = form(**given)
    assert torch.equal(out.mask, given["present"][:, None, :, None].double().expand_as(out.mask))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_inputs_change_nothing(form, dtype):
    """The arithmetic is float32: what comes in as bfloat16 is only rounded on the way in."""
    given = arguments(dtype=dtype, n=16, d=64)
    want = form(**cast(given, torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = form(**given)
    for name in NAMES:
        assert getattr(got, name).dtype == torch.float32
        assert_same(getattr(got, name), getattr(want, name), 1e-6, name)
    for name, gradient in gradients(form, given)[1].items():
        assert gradient.dtype == dtype, name


class Calls(TorchDispatchMode):
    """Counts the operator calls that are no views, and the largest result."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.count += 1
            self.largest = max([self.largest, *(o.numel() for o in (out if isinstance(out, tuple) else (out,)))])
        return out


def test_torch_form_is_lean():
    """Few calls whatever E and M are, and no token tensor per expert; counted on meta tensors, so exact."""
    sizes = dict(b=4, m=5, n=16, e=6, h=8, d=64, k=40)
    given = {
        key: tuple(part.to("meta") for part in value) if isinstance(value, tuple) else value.to("meta")
        for key, value in arguments(**sizes, dtype=torch.float32).items()
    }
    with Calls() as forward:
        out = route_torch(**given)
    with Calls() as backward:
        torch.autograd.grad(out.mask.sum(), list(leaves(given).values()))
    assert forward.count <= 30 and backward.count <= 60, (forward.count, backward.count)
    assert max(forward.largest, backward.largest) < 4 * 6 * 5 * 16 * 64


@pytest.mark.parametrize("zero", ["b", "n", "h", "d"])
@pytest.mark.parametrize("form", FORMS)
def test_zero_sizes(form, zero):
    out, got = gradients(form, arguments(**{zero: 0}))
    assert out.mask.shape == out.gamma.shape == out.beta.shape
    assert all(gradient.isfinite().all() for gradient in got.values())


def test_route_takes_the_backend_in_force():
    given = arguments(dtype=torch.float32)
    for name in ("auto", "torch"):
        with use_backend(name):
            assert all(torch.equal(a, b) for a, b in zip(route(**given), route_torch(**given), strict=True))
    with use_backend("triton"), pytest.raises(ValueError, match="cannot serve this call"):
        route(**given)


BAD = {
    "four axes": (dict(hidden=torch.zeros(2, 3, 5, 8)), r"hidden has shape \(2, 3, 5, 8\), expected five axes"),
    "no experts": (dict(hidden=torch.zeros(2, 3, 5, 0, 4)), "has 3 modalities and 0 experts"),
    "weight": (dict(weight=torch.zeros(3, 2, 4)), r"weight has shape .* expected \(E, M, H\) = \(2, 3, 4\)"),
    "bias": (dict(bias=torch.zeros(3)), "bias has shape"),
    "sigma": (dict(sigma=torch.zeros(2, 2)), r"sigma has shape .* expected \(B, E, M\)"),
    "tokens": (dict(tokens=torch.zeros(2, 3, 4, 6)), "tokens has shape"),
    "text": (dict(text=torch.zeros(2, 2, 3, 5)), "text has shape"),
    "no tokens": (dict(tokens=None), "without tokens"),
    "captioned": (dict(captioned=torch.ones(2, 2, 3)), "captioned has type torch.float32; allowed: torch.bool"),
    "present": (dict(present=torch.ones(2, 2, dtype=torch.bool)), "present has shape"),
    "mix of two": (dict(mix=(torch.zeros(2, 7, 3),) * 2), "got 2 tensors"),
    "w2": (dict(mix=(torch.zeros(2, 7, 3), torch.zeros(2, 7), torch.zeros(2, 7, 3), torch.zeros(2, 3))), "w2 of mix"),
    "integers": (dict(sigma=torch.zeros(2, 2, 3, dtype=torch.int64)), "sigma has type torch.int64; allowed"),
    "device": (dict(weight=torch.zeros(2, 3, 4, device="meta")), "weight is on meta and hidden on cpu"),
    "temperature": (dict(temperature=0.0), "temperature must be above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        route(**arguments(dtype=torch.float32) | change)


def test_export_with_any_batch_survives_a_file():
    loaded = cases.export_and_reload()
    given = arguments(b=5, seed=2, dtype=torch.float32)
    for got, want in zip(loaded(**given), route(**given), strict=True):
        assert_same(got, want, 1e-6)


def test_compiles_as_one_graph():
    given = cast(arguments(), torch.float32)
    want, want_gradients = gradients(route, given)
    got, got_gradients = gradients(torch.compile(route, fullgraph=True, backend="aot_eager"), given)
    for name in NAMES:
        assert_same(getattr(got, name), getattr(want, name), 1e-6, name)
    for name, gradient in want_gradients.items():
        assert_same(got_gradients[name], gradient, 1e-5, name)


@pytest.fixture(scope="module")
def interpreted():
    """How each kernel case failed, if it did. Triton reads TRITON_INTERPRET when it is imported: another process."""
    pytest.importorskip("triton")
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_kernels_in_the_interpreter(interpreted, name):
    assert interpreted[name] == ""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter takes what the compiler rejects; the compiler needs no GPU."""
    pytest.importorskip("triton", minversion="3.4")
    command = [sys.executable, str(SCRIPT), "compile"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == ["_backward_cosine"] * 2 + ["_backward_scores"] * 3 + ["_forward"] * 3
