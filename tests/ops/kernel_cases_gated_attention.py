"""Arguments and gradients of gated attention; as a script, its kernels' cases in Triton's interpreter.

``python kernel_cases_gated_attention.py`` prints one JSON line a case: its name and how it failed, "" if it did not;
with ``compile``, the shared memory in bytes of what the launchers launch, compiled for a GPU that need not be there.
"""

import io
import json
import os
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the script, whose folder alone is on the path

from benchmarks.speed.reference_ops import gated_attention_reference

FLOATS = ("query", "residual", "update", "gate")


def arguments(
    *, batch=2, experts=3, rows=4, length=7, width=6, update="plain", gate="mixed", keys=None,
    dtype=torch.float64, seed=0,
) -> dict[str, Tensor | None]:  # fmt: skip
    """Random arguments, update in a memory layout, gates and keys of a kind; the first of several has no keys."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    added = {
        None: lambda: None,
        "plain": lambda: normal(batch, experts, length, width),
        "swapped": lambda: normal(experts, batch, length, width).transpose(0, 1),
        "strided": lambda: normal(batch, length, experts, 2 * width)[..., ::2].transpose(1, 2),
    }[update]()
    kept = torch.rand(batch, experts, length, generator=rng) < 0.5
    factor = {
        None: lambda: None,
        "mixed": lambda: kept * normal(batch, experts, length),
        "hard": lambda: kept.double(),
        "ones": lambda: torch.ones(batch, experts, length),
        "zeros": lambda: torch.zeros(batch, experts, length),
    }[gate]()
    sets = 1 if added is None and factor is None else experts
    exists = {
        None: lambda: None,
        "sample": lambda: torch.rand(batch, length, generator=rng) < 0.5,
        "set": lambda: torch.rand(batch, sets, length, generator=rng) < 0.5,
        "all": lambda: torch.ones(batch, length, dtype=torch.bool),
        "none": lambda: torch.zeros(batch, sets, length, dtype=torch.bool),
    }[keys]()
    if keys in ("sample", "set") and batch > 1:
        exists[0] = False
    made = {
        "query": normal(batch, rows, width) / max(width, 1) ** 0.5,
        "residual": normal(batch, length, width),
        "update": added,
        "gate": factor,
    }
    ready = {name: None if given is None else given.to(dtype).requires_grad_() for name, given in made.items()}
    return {**ready, "keys": exists}


def outputs(form, given: dict[str, Tensor | None], wanted=FLOATS) -> dict[str, Tensor]:
    """The context and the gradients of a random weighting of it."""
    context = form(**given)
    weight = torch.randn(context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = [name for name in wanted if given[name] is not None]
    gradients = torch.autograd.grad((context * weight.to(context)).sum(), [given[name] for name in names])
    return {"context": context.detach(), **dict(zip(names, gradients, strict=True))}


def in_double(given: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64."""
    return {
        name: value.detach().double().requires_grad_() if name in FLOATS and value is not None else value
        for name, value in given.items()
    }


def distance(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over that of what is right; where that is zero, the difference's own."""
    found, right = found.detach().double(), right.detach().double()
    difference, size = float((found - right).norm()), float(right.norm())
    return difference / size if size else difference


def _check(given, wanted=FLOATS, most=1e-5):
    from nextreid.ops import gated_attention, use_backend

    right = outputs(gated_attention_reference, in_double(given), wanted)
    with use_backend("triton"):
        found = outputs(gated_attention, given, wanted)
    scale = max(float(value.norm()) for value in right.values())
    for name, value in found.items():
        kind = given["query" if name == "context" else name]
        assert value.dtype == kind.dtype and value.shape == right[name].shape, name
        # A gradient that cancels to nothing is judged by the size of those that do not.
        difference, size = float((value.double() - right[name]).norm()), float(right[name].norm())
        assert difference <= most * max(size, 1e-3 * scale), f"{name}: {difference:.1e} from {size:.1e}"
    return found


def _same(**kind):
    return lambda: _check(arguments(dtype=torch.float32, **kind))


def _only(name, **kind):
    def case():
        given = arguments(dtype=torch.float32, **kind)
        _check({k: v.detach() if v is not None and k != name else v for k, v in given.items()}, (name,))

    return case


def _half(kind, mixed=False):
    def case():
        from nextreid.ops import gated_attention, use_backend

        given = arguments(rows=24, length=33, width=96, keys="sample", dtype=kind)
        if mixed:  # as under autocast: residual stream and gate in float32
            for name in ("residual", "gate"):
                given[name] = given[name].detach().float().requires_grad_()
        right = outputs(gated_attention_reference, in_double(given))
        with torch.autocast("cpu", kind, enabled=mixed):
            plain = outputs(gated_attention_reference, given)
            with use_backend("triton"):
                found = outputs(gated_attention, given)
        for name, value in found.items():
            assert value.dtype == plain[name].dtype == (kind if name == "context" else given[name].dtype), name
            assert distance(value, right[name]) <= 2 * distance(plain[name], right[name]), name

    return case


def _empty(**kind):
    def case():
        found = _check(arguments(dtype=torch.float32, **kind))
        assert all((value == 0).all() for value in found.values())

    return case


def _many_blocks():
    from nextreid.ops import gated_attention_triton

    gated_attention_triton._PROGRAMS, before = 2, gated_attention_triton._PROGRAMS
    try:
        _check(arguments(batch=1, length=70, keys="set", dtype=torch.float32))
    finally:
        gated_attention_triton._PROGRAMS = before


def _gradient_lies_as_the_update():
    found = _check(arguments(update="swapped", dtype=torch.float32))
    assert found["update"].transpose(0, 1).is_contiguous()


def _skipped_tokens_are_not_read():
    """A token of gate zero, or no key, has no part in the context, whatever it is."""
    from nextreid.ops import gated_attention, use_backend

    given = arguments(length=40, gate="hard", keys="sample", dtype=torch.float32)
    given = {name: value.detach() for name, value in given.items()}
    with use_backend("triton"):
        right = gated_attention(**given)
        given["update"][(given["gate"] == 0) | ~given["keys"][:, None]] = float("nan")
        assert gated_attention(**given).equal(right)


def _opcheck():
    from nextreid.ops import gated_attention_triton

    for kind in (dict(update="swapped", keys="set"), dict(update=None)):
        given = arguments(dtype=torch.float32, **kind)
        torch.library.opcheck(gated_attention_triton._gated_attention, tuple(given.values()))
        fixed = [None if value is None else value.detach() for value in given.values()]
        context, lse = gated_attention_triton._gated_attention(*fixed)
        wanted = [value is not None for value in fixed[:4]]
        torch.library.opcheck(
            gated_attention_triton._gated_attention_backward,
            (torch.randn_like(context), *fixed, context, lse, wanted),
        )


def _compiled(backend):
    def case():
        from nextreid.ops import gated_attention, use_backend

        compiled = torch.compile(gated_attention, fullgraph=True, backend=backend)
        for batch in (2, 3, 4):  # the first and the second batch size may compile, a third may not
            given = arguments(batch=batch, update="swapped", keys="set", dtype=torch.float32)
            right = outputs(gated_attention_reference, in_double(given))
            with use_backend("triton"), torch._dynamo.config.patch(error_on_recompile=batch == 4):
                found = outputs(compiled, given)
            assert all(distance(value, right[name]) < 1e-5 for name, value in found.items())

    return case


class _Layer(torch.nn.Module):
    def forward(self, query, residual, update, gate, keys):
        from nextreid.ops import gated_attention

        return gated_attention(query, residual, update, gate, keys)


def _exported():
    from nextreid.ops import use_backend

    given = [v.detach() for v in arguments(keys="sample", dtype=torch.float32).values()]
    batch = torch.export.Dim("batch", min=1, max=99)
    shapes = {name: {0: batch} for name in (*FLOATS, "keys")}
    with use_backend("triton"):
        program = torch.export.export(_Layer(), tuple(given), dynamic_shapes=shapes)
    assert "nextreid.gated_attention" in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    other = arguments(batch=5, keys="sample", dtype=torch.float32, seed=1)
    assert distance(torch.export.load(file).module()(*other.values()), gated_attention_reference(**other)) < 1e-5


def _rejected():
    from nextreid.ops import gated_attention, use_backend

    with use_backend("triton"):
        try:
            gated_attention(torch.zeros(1, 2, 513), torch.zeros(1, 3, 513))
        except ValueError as error:
            assert "at most 512 channels in torch.float32, got 513" in str(error)
        else:
            raise AssertionError("513 channels in float32")
        given = arguments(dtype=torch.float32)
        context = gated_attention(**given)
        (first,) = torch.autograd.grad(context.square().sum(), given["query"], create_graph=True)
        try:
            torch.autograd.grad(first.sum(), given["query"])
        except RuntimeError as error:
            assert "autograd" in str(error) or "grad_fn" in str(error), error
        else:
            raise AssertionError("a second derivative")


CASES = {
    "length 1": _same(length=1, width=33, rows=1, experts=1, keys="sample"),
    "length 5, eight experts": _same(length=5, width=33, rows=3, experts=8, keys="set"),
    "length 33, rows 24": _same(length=33, width=96, rows=24, experts=5, batch=1),
    "length 130": _same(length=130, width=33, rows=3, experts=2, update="swapped", keys="set"),
    "length 130, one set": _same(length=130, width=96, rows=24, experts=1, batch=1, gate=None, keys="sample"),
    "rows 33": _same(length=33, width=33, rows=33, batch=1, keys="set"),
    "wide tokens, rows 17": _same(length=5, width=300, rows=17, experts=1, batch=1),
    "many blocks of a chunk": _many_blocks,
    "all kept": _same(length=33, gate="ones", keys="all"),
    "none kept": _same(length=33, gate="zeros", keys="sample"),
    "hard mask": _same(length=33, gate="hard", update="strided", keys="set"),
    "no keys": _empty(keys="none"),
    "no keys, no update": _empty(keys="none", update=None),
    "no gate": _same(length=20, gate=None, keys="set"),
    "no update": _same(length=20, update=None, keys="set"),
    "no update, no keys given": _same(length=20, update=None, experts=8),
    "tokens alone": _same(length=20, update=None, gate=None, keys="set"),
    **{f"only {name}": _only(name, length=20, keys="set") for name in FLOATS},
    "only residual, no update": _only("residual", length=20, update=None),
    "only gate, no update": _only("gate", length=20, update=None),
    **{f"{size} of zero": _empty(**{size: 0}, keys="sample") for size in ("batch", "rows", "length", "width")},
    "bfloat16": _half(torch.bfloat16),
    "float16": _half(torch.float16),
    "mixed under autocast": _half(torch.bfloat16, mixed=True),
    "the update's gradient lies as the update": _gradient_lies_as_the_update,
    "skipped tokens are not read": _skipped_tokens_are_not_read,
    "opcheck": _opcheck,
    "compiled": _compiled("aot_eager"),
    "compiled by inductor": _compiled("inductor"),
    "exported": _exported,
    "rejected": _rejected,
}


def compile_for_a_gpu():
    """Compile what the launchers launch for compute capability 9.0; shared memory in bytes by kernel and call."""
    import triton
    from triton.backends.compiler import GPUTarget

    from nextreid.ops import gated_attention_triton as kernels

    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.bool: "*i1"}
    memory = {}

    def build(kernel, given):
        options = {name: given.pop(name) for name in ("num_warps", "num_stages")}
        signature, fixed, attributes = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            value = given[name]
            if isinstance(value, torch.Tensor):
                signature[name], attributes[place,] = names[value.dtype], [["tt.divisibility", 16]]
            elif value is None or (name.isupper() and len(name) > 1):
                signature[name], fixed[place,] = "constexpr", value
            else:
                signature[name] = "i32"
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert made.asm["cubin"].startswith(b"\x7fELF")
        memory[f"{kernel.__name__} {given['KIND']} {given['SLICES'] * given['WIDTH']}"] = made.metadata.shared

    class Launch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda **given: build(self.kernel, given)

    kernels._forward, kernels._backward = Launch(kernels._forward), Launch(kernels._backward)
    for kind, wanted in (
        (dict(width=512, dtype=torch.bfloat16, keys="sample"), [True] * 4),
        (dict(width=1024, rows=16, dtype=torch.bfloat16, gate=None), [True] * 3 + [False]),
        (dict(width=96, dtype=torch.float32, update=None), [True, True, False, True]),
    ):
        given = arguments(**{"rows": 24, "length": 32, **kind})
        fixed = [None if value is None else value.detach() for value in given.values()]
        context, lse = kernels._gated_attention(*fixed)
        kernels._gated_attention_backward(context, *fixed, context, lse, wanted)
    return memory


def interpret(names):
    """Run cases and report each."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    for name in names:
        try:
            CASES[name]()
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
