"""Arguments and gradients of the routing operation; as a script, its kernels' cases in Triton's interpreter.

``python kernel_cases_routing.py [case ...]`` prints one JSON line a case: its name and, if it failed, how;
``python kernel_cases_routing.py compile`` compiles the kernels for a GPU, which need not be there.
"""

import io
import json
import os
import sys
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the script, whose folder alone is on the path

NAMES = ("mask", "gamma", "beta")
MIX = ("w1", "b1", "w2", "b2")


def arguments(b=2, m=3, n=5, e=2, h=4, d=6, k=7, text=True, captioned=True, mix=True, present=True, seed=0, **options):
    """Arguments of `route`, the floating ones leaves that ask for gradients; the last caption is never there."""
    draw = torch.Generator().manual_seed(seed)
    dtype = options.pop("dtype", torch.float64)

    def leaf(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    def flags(*shape):
        return torch.rand(shape, generator=draw) > 0.4

    given = dict(hidden=leaf(b, m, n, e, h), weight=leaf(e, m, h), bias=leaf(e, m), sigma=leaf(b, e, m))
    if text:
        given |= dict(tokens=leaf(b, m, n, d), text=leaf(b, e, m, d))
        if captioned:
            real = flags(b, e, m)
            real[-1:, -1] = False
            given["captioned"] = real
        if mix:
            given["mix"] = (leaf(e, k, m), leaf(e, k), leaf(e, m, k), leaf(e, m))
    if present:
        given["present"] = flags(b, m)
    return given | options


def cast(given, dtype):
    """The same numbers as leaves of another type."""

    def change(value):
        if isinstance(value, tuple):
            return tuple(map(change, value))
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(dtype).requires_grad_(value.requires_grad)
        return value

    return {key: change(value) for key, value in given.items()}


def leaves(given):
    return {
        name: tensor
        for key, value in given.items()
        for name, tensor in (zip(MIX, value, strict=True) if key == "mix" else [(key, value)])
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad
    }


def gradients(form, given, seed=1):
    """Outputs of a form and the gradients of a random weighting of all of them."""
    out = form(**given)
    draw = torch.Generator().manual_seed(seed)
    there = [o for o in out if o is not None]
    total = sum((o * torch.randn(o.shape, generator=draw, dtype=torch.float64).to(o.dtype)).sum() for o in there)
    named = leaves(given)
    return out, dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def assert_same(got, want, tolerance, name=""):
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, f"{name}: {tuple(got.shape)}, not {tuple(want.shape)}"
    scale = want.abs().max().item() if want.numel() else 0.0
    worst = (got - want).abs().max().item() if want.numel() else 0.0
    assert worst <= tolerance * max(scale, 0.1), f"{name}: {worst} of {scale}"


def assert_right(given, tolerance=1e-5):
    """The kernels' outputs and gradients against the reference in float64; returns them."""
    from benchmarks.speed.reference_ops import route_reference
    from nextreid.ops import route, use_backend

    want, want_gradients = gradients(route_reference, cast(given, torch.float64))
    with use_backend("triton"):
        got, got_gradients = gradients(route, given)
    if "text" not in given:
        assert got.beta is None
    else:
        assert_same(got.beta, want.beta, 1e-5, "beta")
    assert_same(got.gamma, want.gamma, 1e-5, "gamma")
    clear = (want.gamma - given["sigma"].double()[..., None]).abs() > 1e-4
    assert torch.equal(got.mask[clear].double(), want.mask[clear]), "mask"
    assert {value.item() for value in got.mask.unique()} <= {0.0, 1.0}, "mask"
    for name, gradient in want_gradients.items():
        assert got_gradients[name].dtype == leaves(given)[name].dtype, name
        assert_same(got_gradients[name], gradient, tolerance, f"gradient of {name}")
    return got, got_gradients


SIZES = {
    "one of everything": dict(b=1, m=1, n=1, e=1, h=1, d=1, k=1),
    "one modality, eight experts": dict(m=1, n=5, e=8, h=12, d=33, k=8),
    "two modalities, three chunks": dict(b=2, m=2, n=130, e=2, h=5, d=33, k=16),
    "the paper's three": dict(b=1, m=3, n=33, e=3, h=33, d=96, k=24),
    "four modalities, seven experts": dict(b=1, m=4, n=9, e=7, h=16, d=20, k=3),
    "five modalities, wide": dict(b=1, m=5, n=3, e=4, h=40, d=300, k=40),
}
WITHOUT = [(), ("text",), ("mix",), ("captioned",), ("present",), ("text", "present"), ("captioned", "mix", "present")]


def sizes(name):
    assert_right(arguments(**SIZES[name], dtype=torch.float32, temperature=0.7))


def without(*parts):
    assert_right(arguments(n=17, dtype=torch.float32, **dict.fromkeys(parts, False)))


def masks(kind):
    given = arguments(n=17, e=3, dtype=torch.float32)
    present = given["present"][:, None, :, None]
    if kind == "all kept":
        given["sigma"] = given["sigma"].detach() - 20
        assert torch.equal(assert_right(given)[0].mask, present.float().expand(-1, 3, -1, 17))
    elif kind == "none kept":
        given["sigma"] = given["sigma"].detach() + 20
        assert not assert_right(given)[0].mask.any()
    elif kind == "none present":
        given["present"] = torch.zeros_like(given["present"])
        got, found = assert_right(given)
        assert not got.mask.any() and not found["sigma"].any()
    else:
        given["captioned"] = torch.zeros_like(given["captioned"])
        got, found = assert_right(given)
        assert not got.beta.any() and not any(found[name].any() for name in ("tokens", "text", *MIX))


def layouts(kind):
    given = arguments(n=17, h=8, d=12, dtype=torch.float32)
    hidden, tokens, text, sigma = (given[name].detach() for name in ("hidden", "tokens", "text", "sigma"))
    if kind == "one product a modality":
        hidden, tokens = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (hidden, tokens))
    elif kind == "every second":
        hidden, tokens, text = (x.repeat_interleave(2, -1)[..., ::2] for x in (hidden, tokens, text))
    elif kind == "experts first":
        hidden = hidden.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
        text = text.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        hidden, sigma = hidden[:1].expand_as(hidden), sigma[:1, :1].expand_as(sigma)
    changed = dict(hidden=hidden, tokens=tokens, text=text, sigma=sigma)
    assert any(not x.is_contiguous() for x in changed.values())
    assert_right(given | {name: x.requires_grad_() for name, x in changed.items()})


def zero_vectors():
    """Lengths below the smallest divisor: an absent caption, which gets no gradient, and a token of zeros."""
    given = arguments(n=17, dtype=torch.float32)
    with torch.no_grad():
        given["text"][~given["captioned"]] = 0
        given["tokens"][0, 0, 3] = 0
    given["text"].requires_grad_(False)
    _, found = assert_right(given)
    assert found["tokens"][0, 0, 3].abs().max() > 1e6
    given["text"].requires_grad_()
    given["tokens"] = given["tokens"].detach()
    _, found = assert_right(given)
    assert not found["text"][~given["captioned"]].any()


def zero_sizes(axis):
    assert_right(arguments(**{axis: 0}, dtype=torch.float32))


def half(name):
    """Blocks are float32 before any arithmetic: only the gradients are rounded, once, when they are written."""
    dtype = getattr(torch, name)
    given = arguments(n=17, h=8, d=33, dtype=torch.float32)
    rounded = {key: cast({key: given[key]}, dtype)[key] for key in ("hidden", "tokens", "text", "sigma")}
    assert_right(given | rounded, tolerance=torch.finfo(dtype).eps)


def only(*wanted):
    """Each gradient is the same when it alone is needed, and what is not needed is not launched."""
    from nextreid.ops import routing_triton

    given = arguments(n=17, dtype=torch.float32)
    _, everything = assert_right(given)
    for name, leaf in leaves(given).items():
        leaf.requires_grad_(name in wanted)
    sides, launched = routing_triton._backward_sides, []
    routing_triton._backward_sides = lambda *given: launched.append(given) or sides(*given)
    try:
        _, found = assert_right(given)
    finally:
        routing_triton._backward_sides = sides
    assert set(found) == set(wanted) and all(torch.equal(found[name], everything[name]) for name in wanted)
    assert bool(launched) == bool({"tokens", "text"} & set(wanted))


def positions_stand_alone():
    """A position's results depend neither on how many there are nor on the block it is in."""
    from nextreid.ops import route, use_backend

    given = arguments(n=130, dtype=torch.float32)
    short = given | {"hidden": given["hidden"][:, :, 70:103], "tokens": given["tokens"][:, :, 70:103]}
    with use_backend("triton"):
        for whole, part in zip(route(**given), route(**short), strict=True):
            assert torch.equal(whole[..., 70:103], part)


def repeats_to_the_bit():
    given = arguments(n=66, m=2, dtype=torch.float32)
    first, second = assert_right(given), assert_right(given)
    assert all(torch.equal(x, y) for x, y in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def autocast():
    from nextreid.ops import route, use_backend

    given = arguments(n=17, d=64, dtype=torch.float32)
    with use_backend("triton"):
        want = route(**given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = route(**given)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def operators(kind):
    """Schema, shapes, gradient registration and tracing, as torch's own checks see them."""
    from nextreid.ops.routing import route_backward_op, route_op

    given = arguments(b=2, m=2, n=3, e=1, dtype=torch.float32, **({"text": False} if kind == "scores" else {}))
    flat = (
        *(given[name] for name in ("hidden", "weight", "bias", "sigma")),
        *(given.get(name) for name in ("tokens", "text", "captioned")),
        *given.get("mix", (None,) * 4),
        given["present"],
        0.5,
    )
    torch.library.opcheck(route_op, flat)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in flat]
    out = route_op(*plain)
    for needs in ([True] * 4 if kind == "all" else [True, True, False, False], [False] * 4):
        arguments_back = (*map(torch.ones_like, out), *out[1:], *plain, needs)
        torch.library.opcheck(route_backward_op, arguments_back, test_utils=("test_schema", "test_faketensor"))


class Routing(torch.nn.Module):
    def forward(self, hidden, weight, bias, sigma, tokens, text, captioned, mix, present):
        from nextreid.ops import route

        return tuple(route(hidden, weight, bias, sigma, tokens, text, captioned, mix, present))


def compiled():
    from nextreid.ops import route, use_backend

    given = arguments(n=17, dtype=torch.float32)
    with use_backend("triton"):
        want, want_gradients = gradients(route, given)
        got, got_gradients = gradients(torch.compile(route, fullgraph=True, backend="aot_eager"), given)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert all(torch.equal(got_gradients[name], want_gradients[name]) for name in want_gradients)


def exported():
    from nextreid.ops import route, use_backend

    with use_backend("triton"):
        loaded = export_and_reload()
        given = arguments(b=5, seed=2, dtype=torch.float32)
        assert any("nextreid.route" in str(node.target) for node in loaded.graph.nodes)
        assert all(torch.equal(x, y) for x, y in zip(loaded(**given), route(**given), strict=True))


def export_and_reload():
    """A program for any batch size that went through a file."""
    batch = torch.export.Dim("batch", min=1, max=64)
    batched = ("hidden", "sigma", "tokens", "text", "captioned", "present")
    given = arguments(b=3, dtype=torch.float32)
    axes = {key: {0: batch} if key in batched else (None,) * 4 if key == "mix" else None for key in given}
    file = io.BytesIO()
    torch.export.save(torch.export.export(Routing(), (), given, dynamic_shapes=axes), file)
    file.seek(0)
    return torch.export.load(file).module()


CASES = {
    **{f"sizes: {name}": (sizes, name) for name in SIZES},
    **{f"without {', '.join(parts) or 'nothing'}": (without, *parts) for parts in WITHOUT},
    **{kind: (masks, kind) for kind in ("all kept", "none kept", "none present", "none captioned")},
    **{
        f"layout: {kind}": (layouts, kind)
        for kind in ("one product a modality", "every second", "experts first", "expanded")
    },
    "zero vectors": (zero_vectors,),
    **{f"no {axis}": (zero_sizes, axis) for axis in "bnhdk"},
    **{name: (half, name) for name in ("bfloat16", "float16")},
    **{
        f"gradient of {', '.join(names)}": (only, *names)
        for names in (("hidden",), ("sigma",), ("weight",), ("b2",), ("tokens",), ("text",), ("bias", "tokens"))
    },
    "positions stand alone": (positions_stand_alone,),
    "repeats to the bit": (repeats_to_the_bit,),
    "autocast": (autocast,),
    "operators, all": (operators, "all"),
    "operators, scores only": (operators, "scores"),
    "compiled": (compiled,),
    "exported": (exported,),
}


def compile_for_a_gpu():
    """Compile what the launchers launch for compute capability 9.0; the names of the kernels."""
    import triton
    from triton.backends.compiler import GPUTarget

    from nextreid.ops import routing_triton

    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.bool: "*i1"}
    compiled = []

    def build(kernel, *values, num_warps, **constants):
        signature, fixed, attributes = {}, {}, {}
        values = dict(zip(kernel.arg_names, values, strict=False)) | constants
        for place, name in enumerate(kernel.arg_names):
            value = values[name]
            if name in constants or value is None or (value == 1 if isinstance(value, int) else False):
                signature[name], fixed[place,] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[place,] = names[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[name] = "i32" if isinstance(value, int) else "fp32"
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
        assert made.asm["cubin"].startswith(b"\x7fELF")
        compiled.append(kernel.__name__)

    class Launch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *values, **constants: build(self.kernel, *values, **constants)

    for name in ("_forward", "_backward_scores", "_backward_cosine"):
        setattr(routing_triton, name, Launch(getattr(routing_triton, name)))
    for sized, options, dtype, needs in (
        (dict(n=128, e=3, h=128, d=512, k=24), {}, torch.bfloat16, [True, True, True, False]),
        (dict(m=5, e=8, h=33, d=96, k=40), dict(present=False, captioned=False), torch.float32, [True] * 4),
        (dict(m=2, h=128), dict(text=False), torch.bfloat16, [False] * 4),
    ):
        given = arguments(**sized, **options, dtype=dtype)
        head = [given[name] for name in ("hidden", "weight", "bias", "sigma")]
        body = [*(given.get(name) for name in ("tokens", "text", "captioned")), *given.get("mix", (None,) * 4)]
        out = routing_triton.forward(*head, *body, given.get("present"))
        back = (*head[:2], head[3], *body[:-1], given.get("present"), 1.0, needs)
        routing_triton.backward(out, *out[1:], *back)
    return compiled


def interpret(names):
    """Run cases and report each."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    for name in names:
        function, *given = CASES[name]
        try:
            function(*given)
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        sys.stdout.write(json.dumps([name, failure]) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["compile"]:
        sys.stdout.write(json.dumps(compile_for_a_gpu()))
    else:
        interpret(sys.argv[1:] or CASES)
