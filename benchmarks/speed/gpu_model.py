"""The whole model: a training step (P17) and embedding (P18), and of P24 what concerns a run. See ``gpu.py``."""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.flop_counter import FlopCounterMode

import nextreid
from nextreid.data import MODALITIES, Batch, augment_batch, seeded_rng
from nextreid.data.captions import caption_sampler
from nextreid.engine import get_recipe
from nextreid.engine.embedding import eval_transform
from nextreid.engine.optimizer import build_optimizer
from nextreid.losses import Criterion
from nextreid.models import NEXT

from . import reference
from .gpu_rig import Rig, Row, guarded

M = len(MODALITIES)
_WORDS = (
    "a the person man woman wears carries red blue green black white grey dark bright long short coat jacket shirt "
    "trousers jeans skirt shoes boots bag backpack hat hair umbrella with and holding walking standing near while"
).split()


@cache
def sentence(*key: int | str) -> str:
    """Eleven synthetic words."""
    return " ".join(_WORDS[i] for i in seeded_rng("sentence", *key).integers(0, len(_WORDS), 11)) + "."


def build(rig: Rig, num_classes: int = 0) -> NEXT:
    """The paper's model, or its smallest sibling, with random weights."""
    torch.manual_seed(0)
    name = rig.pick("next_clip_b16", "next_tiny")
    model = nextreid.create_model(name, num_classes=num_classes)
    assert isinstance(model, NEXT)
    return model.to(rig.device)


class _Given:
    """A batch of training on the device, with the captions of its experts as sentences and as tokens."""

    def __init__(self, rig: Rig, model: NEXT, number: int, ids: int, each: int) -> None:
        count, new = ids * each, partial(torch.rand, device=rig.device)
        self.images = torch.randn(count, M, 3, *model.img_size, device=rig.device)
        self.present = new(count, M) < 0.9
        self.present[:, number % M] = True
        self.pid = torch.arange(ids, device=rig.device).repeat_interleave(each)
        captions = [[[sentence(number, i, m, s) for s in range(4)] for m in range(M)] for i in range(count)]
        keys, draws = [f"{number} {i}" for i in range(count)], [(1, i) for i in range(count)]
        sample, experts = caption_sampler(captions, keys, draws, seed=0), range(model.head.num_semantic_experts)
        self.rows = [[sample(i, m, e) for m in range(M)] for i in range(count) for e in experts]
        assert model.text_tower is not None
        texts = [" ".join(caption) for row in self.rows for caption in row]
        self.tokens = model.text_tower.tokenize(texts).to(rig.device)


def training_step(rig: Rig) -> Iterator[Row]:
    """P17: ours, eager and compiled, against the equations, a text tower each step and a tower call per modality."""
    ids, each = rig.pick((8, 8), (2, 2))
    batch = ids * each
    model = build(rig, rig.pick(171, 4)).train()
    plain = as_equations(copy.deepcopy(model))
    plain.encode_images = partial(_one_call_each, plain)  # type: ignore[method-assign]
    given = [_Given(rig, model, number, ids, each) for number in range(3)]
    size = f"{model.pretrained_cfg.architecture}, batch {batch} x {M}, dropout 0.1, {'bf16' if rig.gpu else 'fp32'}"
    note = _check_step(model, plain, given[0])

    def ours(given: _Given) -> Tensor:
        return model.encode_text(given.rows).unflatten(0, (batch, -1))  # from the table, from the second time on

    step = partial(_step, rig, itertools.cycle(given))
    optimizer = build_optimizer(model, get_recipe("next"))
    eager = partial(step, model, optimizer, ours)
    compiled = partial(step, rig.compile(model), optimizer, ours)
    as_written = partial(step, plain, build_optimizer(plain, get_recipe("next")), partial(_text_as_written, rig, plain))
    for _ in given:
        eager()  # fills the table
    with FlopCounterMode(display=False) as counter:
        eager()
    floor = batch * rig.ceilings.flops / counter.get_total_flops()
    aim: dict[str, Any] = {"bound": 1300, "ratio": 3}
    against, theirs = "its equations, eager", None
    for name, code in (("eager", eager), ("compiled", compiled)):
        mine, theirs = rig.time(code, as_written)
        pair = mine.rate(batch), against, theirs.rate(batch)
        yield rig.row("P17", f"training step, {name}", size, "samples/s", *pair, floor, note=note, **aim)
    most = rig.peak(as_written)
    for name, code in (("eager", eager), ("compiled", compiled)):
        yield rig.row("P17", f"memory of a step, {name}", size, "GiB", rig.peak(code), against, most)
    if not torch.stack([p.isfinite().all() for p in model.parameters()]).all():
        raise ValueError("weights are not finite after the timed steps")
    yield from guarded("P24", "recompilation", _no_recompilation(rig, compiled, len(given), size))


def _step(
    rig: Rig, batches: Iterator[_Given], call: Any, optimizer: torch.optim.Optimizer, text: Callable[[_Given], Tensor]
) -> None:
    given = next(batches)
    features = text(given)
    with rig.autocast():
        out = call(given.images, text=features, present=given.present)
    loss = Criterion()(out.heads, given.pid, out.losses)["total"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _text_as_written(rig: Rig, model: NEXT, given: _Given) -> Tensor:
    """Every caption through the tower in every step; they are tokenised ahead, as loaders do."""
    assert model.text_tower is not None
    with rig.autocast():
        features = model.text_tower(given.tokens)
    return normalize(features.float(), dim=-1).view(len(given.pid), -1, M, model.embed_dim)


def as_equations(model: NEXT) -> NEXT:
    """Let a model compute its head by the equations."""
    head = model.head

    def forward(
        cls: Tensor, tokens: Tensor, text: Tensor | None, present: Tensor | None, return_parts: bool = True
    ) -> dict[str, Tensor]:
        return reference.head(head, cls, tokens, text, present)

    head.forward = forward  # type: ignore[assignment]
    return model


def _one_call_each(
    model: NEXT, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None
) -> dict[str, Tensor]:
    """`ReIDModel.encode_images` with a call of the image tower for each modality."""
    (tower,) = model.image_tower.towers()
    pairs = [tower(images[:, m], camid) for m in range(M)]
    return {
        "cls": torch.stack([cls for cls, _ in pairs], 1),
        "tokens": torch.stack([patches for _, patches in pairs], 1),
    }


@torch.no_grad()
def _check_step(model: NEXT, plain: NEXT, given: _Given) -> str:
    """Both forms give one embedding in float32, in evaluation mode, up to tokens that lie at their thresholds."""
    model.eval(), plain.eval()
    assert model.text_tower is not None
    text = model.encode_text(given.rows).unflatten(0, (len(given.pid), -1))
    tower = normalize(model.text_tower(given.tokens), dim=-1).view_as(text)
    ours = model(given.images, text, given.present).embedding
    theirs = plain(given.images, tower, given.present).embedding
    model.train(), plain.train()
    off = ((ours - theirs).norm() / theirs.norm()).item(), (text - tower).abs().max().item()
    if not (off[0] < 1e-2 and off[1] < 1e-3):
        raise ValueError(f"embeddings of the two forms differ by {off[0]:.1e}, caption features by {off[1]:.1e}")
    return f"embeddings in float32 agree to {off[0]:.1e}"


def _no_recompilation(rig: Rig, compiled: Callable[[], None], count: int, size: str) -> Iterator[Row]:
    """P24: steps on other batches, with other modalities absent, after the first one."""
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2 * count):
            compiled()
    yield rig.row("P24", f"recompilations in {2 * count} steps after the first", size, "times", 0.0, bound=0)


def embedding(rig: Rig) -> Iterator[Row]:
    """P18: uint8 images on the device to embeddings, in bfloat16, and in float32 as evaluation computes them."""
    batch = rig.pick(128, 4)
    model = build(rig).eval()
    half = copy.deepcopy(model).bfloat16()
    plain = as_equations(copy.deepcopy(half))
    transform = eval_transform(model)
    size = f"{model.pretrained_cfg.architecture}, batch {batch} x {M}, from uint8 on the device, text from the table"
    captions = [[[sentence(i, m, s) for s in range(3)] for m in range(M)] for i in range(batch)]
    text = model.encode_text(captions)
    batches = [_raw(rig, model, batch) for _ in range(3)]
    here, there = (augment_batch(raw, transform).images.cpu() for raw in (batches[0], batches[0].to("cpu")))
    what = "numbers that the device normalises unlike the CPU"
    yield rig.row("P18", what, size, "", float((here != there).sum()), bound=0)
    turn = itertools.cycle(batches)

    @torch.no_grad()
    def embed(call: Callable[..., Tensor], dtype: torch.dtype, raw: Batch | None = None) -> Tensor:
        ready = augment_batch(raw or next(turn), transform)
        return call(ready.images.to(dtype), text=text.to(dtype), present=ready.present)

    as_written = partial(embed, plain, torch.bfloat16)
    exact = partial(embed, model, torch.float32)
    codes = {
        "bf16, eager": partial(embed, half, torch.bfloat16),
        "bf16, compiled": partial(embed, rig.compile(half), torch.bfloat16),
        "fp32, eager": exact,
    }
    truth = exact(batches[0])
    for name, code in codes.items():
        found = cosine_similarity(code(batches[0]).float(), truth, dim=-1).min().item()
        written = cosine_similarity(as_written(batches[0]).float(), truth, dim=-1).min().item()
        note = f"least cosine with float32 {found:.5f}, its equations in bf16 {written:.5f}"
        if not 1 - found <= 2 * (1 - written) + 1e-3:
            raise ValueError(f"{name}: {note}")
        with FlopCounterMode(display=False) as counter:
            codes["bf16, eager"]()
        floor = batch * rig.ceilings.flops / counter.get_total_flops() if name.startswith("bf16") else None
        mine, theirs = rig.time(code, as_written)
        pair = mine.rate(batch), "its equations, bf16, eager", theirs.rate(batch)
        aim: dict[str, Any] = {"bound": 5000} if name.startswith("bf16") else {}
        yield rig.row("P18", f"embedding, {name}", size, "samples/s", *pair, floor, note=note, **aim)


def _raw(rig: Rig, model: NEXT, count: int) -> Batch:
    images = torch.randint(0, 256, (count, M, 3, *model.img_size), dtype=torch.uint8)
    number = torch.zeros(count, dtype=torch.int64)
    present, keys = torch.ones(count, M, dtype=torch.bool), [str(i) for i in range(count)]
    no_captions: list[list[tuple[str, ...]]] = [[()] * M] * count
    batch = Batch(images, present, no_captions, number, number, number, keys, [(0, i) for i in range(count)])
    return batch.to(rig.device)
