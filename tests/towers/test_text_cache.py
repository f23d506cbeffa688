"""Captions encoded once: the laws of the table, of its file, and the counts of what is computed."""

import copy
import multiprocessing
import resource
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import nextreid.towers.text as text_module
import nextreid.towers.text_cache as text_cache_module
from nextreid._files import write_tensors
from nextreid.data.captions import caption_sampler, read_captions, split_sentences
from nextreid.towers import CONTEXT, TextTower
from nextreid.towers.text_cache import TextFeatureCache, read_cache, write_cache

WORDS = "a man wearing dark jacket with trousers and boots seen from behind at night in dim light".split()
TEXTS = [" ".join(WORDS[: 1 + i % 16] * (1 + i // 16)) for i in range(64)]
TINY = {"width": 32, "heads": 2, "layers": 1}
ORIGIN = {"tower": "t", "dtype": "torch.float32"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make(dtype=torch.float32, cache_bytes=2**20, device="cpu", **settings):
    torch.manual_seed(0)
    return TextTower({**TINY, **settings}, 16, cache_bytes).to(device, dtype)


class Watch:
    """What a tower computes: texts, batches of tokens."""

    def __init__(self, tower):
        self.texts, self.batches = [], []
        encode, forward = tower._encode, tower._forward
        tower._encode = lambda texts: self.texts.extend(texts) or encode(texts)
        tower._forward = lambda tokens: self.batches.append(tokens) or forward(tokens)


def alone(tower, windows):
    """The definition, each text computed by itself."""
    if not windows:
        return torch.zeros(tower.embed_dim, dtype=next(tower.parameters()).dtype)
    units = []
    for text in windows:
        tower.clear_cache()
        units.append(tower._encode([text])[0])
    return F.normalize(torch.stack(units).mean(0), dim=-1).cpu()


@pytest.fixture(params=["alone", "together"])
def batching(request, monkeypatch):
    """As on a CPU and as on other devices."""
    if request.param == "together":
        monkeypatch.setattr(text_module, "_SHAPES", {})


@pytest.mark.usefixtures("batching")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 32), (torch.bfloat16, 32), (torch.float64, 32), (torch.float32, 512)]
)
def test_a_caption_is_the_same_to_the_last_bit_in_any_company(dtype, width, device):
    tower = make(dtype, device=device, width=width, heads=width // 16)
    pool = TEXTS[:: 2 if width < 512 else 9]
    captions = [(), *((t,) for t in pool), *zip(pool[::3], pool[1::3], strict=False), tuple(pool[3:6])]
    with torch.no_grad():
        expected = {windows: alone(tower, windows) for windows in captions}
    calls = st.lists(st.lists(st.sampled_from(sorted(expected)), max_size=40), min_size=1, max_size=4)

    @settings(max_examples=8 if width < 512 else 3, deadline=None)
    @given(calls, st.sampled_from([0, 3, 10, 10**6]))
    def law(calls, room):
        tower.cache = TextFeatureCache(room * 16 * dtype.itemsize)
        for call in calls:
            found = tower.encode(call)
            assert found.dtype == dtype and found.shape == (len(call), 16)
            for windows, feature in zip(call, found, strict=True):
                assert torch.equal(feature.cpu(), expected[windows])

    law()


def sentences(count=7, samples=6):
    return [
        [[f"Sentence {s} of {m}{' word' * s} in image {i % 4}." for s in range(count)] for m in range(3)]
        for i in range(samples)
    ]


def epochs(tower, captions, count, keep_ratio=None):
    """Draw captions as training does; return all drawn windows."""
    drawn = []
    for epoch in range(count):
        for start in range(0, len(captions), 3):
            part = captions[start : start + 3]
            keys, draws = [f"{start + i}" for i in range(len(part))], [(epoch, i) for i in range(len(part))]
            draw = caption_sampler(part, keys, draws, 0, keep_ratio)
            rows = [draw(i, m, e) for i in range(len(part)) for e in range(2) for m in range(len(part[i]))]
            drawn.append([tower.windows(c) for c in rows])
            tower.encode(drawn[-1])
    return drawn


def test_each_text_is_encoded_once_in_a_run_and_no_token_behind_its_end():
    tower = make()
    watch = Watch(tower)
    drawn = epochs(tower, sentences(), 6)
    texts = {text for call in drawn for windows in call for text in windows}
    assert len(watch.texts) == len(set(watch.texts)) and set(watch.texts) == texts
    assert max(map(tower.count_tokens, texts)) > 60 and any(len(w) > 1 for call in drawn for w in call)
    assert [tuple(tokens.argmax(1) + 1) for tokens in watch.batches] == [tokens.shape[1:] for tokens in watch.batches]
    assert len(watch.batches) == len(texts)
    computed = sum(tokens.numel() for tokens in watch.batches)
    assert computed == sum(map(tower.count_tokens, texts))
    assert 2 * computed < CONTEXT * sum(len(windows) for call in drawn for windows in call)


def test_batches_of_other_devices_have_few_shapes(monkeypatch):
    monkeypatch.setattr(text_module, "_SHAPES", {})
    tower = make()
    watch = Watch(tower)
    epochs(tower, sentences(), 2)
    assert len(watch.texts) == len(set(watch.texts))
    assert {tokens.shape for tokens in watch.batches} == {(32, length) for length in (16, 32, 48, 64, CONTEXT)}
    ends = torch.cat([tokens.argmax(1) + 1 + CONTEXT - tokens.shape[1] for tokens in watch.batches])
    assert (ends > CONTEXT - 16).all()  # of the smallest shape that a text fits


def test_a_second_epoch_over_the_same_captions_computes_nothing():
    tower = make()
    epochs(tower, sentences(), 1, keep_ratio=1.0)
    watch = Watch(tower)
    epochs(tower, sentences(), 1, keep_ratio=1.0)
    assert not watch.batches


def test_warming_encodes_all_by_length_and_leaves_nothing_to_do(monkeypatch):
    monkeypatch.setattr(text_module, "_WARM", 40)
    tower, fresh = make(), make()
    captions = [[TEXTS[3], "A second sentence."], TEXTS[60] * 3, None, (), *TEXTS]
    watch, counted = Watch(tower), []
    count = tower.precompute(captions, lambda *counts: counted.append(counts))
    assert count == len(watch.texts) == len(set(watch.texts)) == len(tower.cache) > len(TEXTS)
    assert counted == [(40, count), (count, count)]
    lengths = [tokens.shape[1] for tokens in watch.batches]
    assert lengths == sorted(lengths)
    done = len(watch.batches)
    assert torch.equal(
        tower.encode([tower.windows(c) for c in captions]), fresh.encode([fresh.windows(c) for c in captions])
    )
    assert len(watch.batches) == done and tower.precompute(captions) == 0


def test_warming_stops_where_the_table_is_full(caplog):
    tower = make(cache_bytes=10 * 64)
    assert tower.precompute(TEXTS) == 10 == len(tower.cache)
    assert caplog.messages == [f"the text cache has room for 10 of {len(TEXTS)} texts: give it more cache_bytes"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.lists(st.lists(st.integers(0, 40), max_size=15, unique=True), max_size=12))
def test_the_table_keeps_the_newest_in_bounded_memory(room, batches):
    table, model = TextFeatureCache(room * 12), {}
    for batch in batches:
        new = [f"t{i}" for i in batch if f"t{i}" not in table]
        assert new == [f"t{i}" for i in batch if f"t{i}" not in model]
        rows = torch.tensor([[int(t[1:]), 1.0, 2.0] for t in new]).view(len(new), 3)
        table.add(new, rows)
        model |= dict(zip(new, rows, strict=True))
        model = dict(list(model.items())[-room:]) if room else {}
        assert table.texts == list(model) and len(table) == len(model) and table.nbytes <= table.max_bytes
        if model:
            asked = sorted(model)
            assert torch.equal(table.look_up(asked), torch.stack([model[t] for t in asked]))
        for gone in {f"t{i}" for i in range(41)} - set(model):
            with pytest.raises(KeyError):
                table.look_up([gone])


def test_the_table_grows_with_little_idle_room():
    table, most = TextFeatureCache(2**30), 0.0
    for start in range(0, 6000, 40):
        table.add([f"t{i}" for i in range(start, start + 40)], torch.zeros(40, 8))
        most = max(most, table.nbytes / (len(table) * 32))
    assert most <= 1.125


def unseen(tower):
    tower.transformer.text_projection.data.copy_(torch.randn(32, 16))
    tower.clear_cache()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in t.state_dict().items()}),
        lambda t: t.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in t.state_dict().items()}, assign=True),
        lambda t: t.bfloat16().float(),
        lambda t: t.transformer.double(),
        lambda t: t.transformer.ln_final.weight.mul_(torch.rand(32)),
        unseen,
    ],
    ids=["loaded", "assigned", "cast there and back", "a part cast", "changed in place", "told"],
)
@torch.no_grad()
def test_what_was_encoded_is_forgotten_with_the_weights(change):
    tower = make()
    before = tower.encode([[t] for t in TEXTS])
    change(tower)
    after, fresh = tower.encode([[t] for t in TEXTS]), make()
    fresh.to(after.dtype).load_state_dict(tower.state_dict())
    assert torch.equal(after, fresh.encode([[t] for t in TEXTS]))
    assert after.dtype != before.dtype or not torch.equal(after, before)


def test_a_cast_is_seen_where_memory_is_used_again(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
    tower = make()
    before = tower.encode([[t] for t in TEXTS])
    assert not torch.equal(tower.bfloat16().float().encode([[t] for t in TEXTS]), before)


def test_nothing_is_forgotten_without_need():
    tower = make()
    tower.encode([[t] for t in TEXTS])
    watch = Watch(tower)
    tower.to("cpu").float().eval().requires_grad_(False)
    tower.encode([[t] for t in TEXTS])
    assert not watch.texts


def test_nothing_is_kept_while_the_tower_is_trained():
    tower = make()
    before = tower.encode([[TEXTS[0]]])
    tower.requires_grad_(True)
    optimizer = torch.optim.SGD(tower.parameters(), lr=1.0, fused=True)
    tower.encode([[TEXTS[0]]])
    tower(tower.tokenize([TEXTS[0]]))[0, 0].backward()
    optimizer.step()
    assert not torch.equal(tower.encode([[TEXTS[0]]]), before)


def test_a_copy_of_a_tower_carries_no_table(tmp_path):
    tower = make()
    tower.open_cache(tmp_path / "texts.safetensors")
    expected = tower.encode([[TEXTS[0]]])
    twin = copy.deepcopy(tower)
    assert len(twin.cache) == 0 and twin.cache.max_bytes == 2**20 and len(tower.cache) == 1
    assert torch.equal(twin.encode([[TEXTS[0]]]), expected)
    assert not twin.save_cache()  # it has no file


def test_an_interrupted_change_leaves_no_row_under_another_text(monkeypatch):
    table = TextFeatureCache(3 * 8)
    table.add(["a", "b", "c"], torch.tensor([[1.0, 1], [2, 2], [3, 3]]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            text_cache_module, "zip", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt), raising=False
        )
        table.add(["d"], torch.tensor([[4.0, 4]]))
    assert len(table) == 0 and "a" not in table
    table.add(["d"], torch.tensor([[4.0, 4]]))
    assert torch.equal(table.look_up(["d"]), torch.tensor([[4.0, 4]]))


def test_modes_around_it_change_nothing():
    tower, expected = make(), make().encode([[t] for t in TEXTS])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tower.encode([[t] for t in TEXTS[:20]]), expected[:20])
    tower.clear_cache()
    with torch.inference_mode():
        tower.encode([[t] for t in TEXTS[:40]])
        tower.encode([[t] for t in TEXTS[:41]])
    idle = tower.cache.nbytes
    tower.encode([[t] for t in TEXTS[:42]])  # writes to rows that were made in inference mode
    assert tower.cache.nbytes == idle
    features = tower.encode([[t] for t in TEXTS])
    assert torch.equal(features, expected)
    scale = torch.ones(16, requires_grad=True)
    (features * scale).sum().backward()
    assert torch.equal(scale.grad, features.sum(0))


def test_a_file_saves_all_encoding_to_the_last_bit(tmp_path):
    first, path = make(), tmp_path / "deep" / "texts.safetensors"
    first.open_cache(path)
    texts = [*TEXTS, "Citroën 长安", "broken \ud800 text"]
    expected = first.encode([[t] for t in texts])
    assert first.save_cache() and [p.name for p in path.parent.iterdir()] == [path.name]
    second = TextTower(TINY, 16)
    second.open_cache(path)  # before the weights, and even used before them: the file is read for what it fits
    second.encode([["early"]])
    second.load_state_dict(first.state_dict())
    watch = Watch(second)
    assert torch.equal(second.encode([[t] for t in texts]), expected) and not watch.texts
    written = path.stat().st_mtime_ns
    assert second.save_cache() and first.save_cache() and path.stat().st_mtime_ns == written  # nothing new


def test_a_file_may_be_opened_late_and_other_weights_take_it_over(tmp_path):
    first, path = make(), tmp_path / "texts.safetensors"
    first.open_cache(path)
    first.encode([[t] for t in TEXTS[:20]])
    first.save_cache()
    second = make()
    second.encode([[t] for t in TEXTS[10:30]])
    second.open_cache(path)
    watch = Watch(second)
    second.encode([[t] for t in TEXTS[:30]])
    assert not watch.texts and len(second.cache) == 30
    assert second.save_cache() and sorted(read_cache(path, first._provenance())[0]) == sorted(TEXTS[:30])
    second.open_cache(tmp_path / "elsewhere.safetensors")
    assert second.save_cache() and len(read_cache(tmp_path / "elsewhere.safetensors", first._provenance())[0]) == 30
    second.open_cache(path)
    with torch.no_grad():
        second.transformer.positional_embedding.mul_(2)
    second.encode([[TEXTS[0]]])
    assert second.save_cache()
    with pytest.raises(ValueError, match="it was made with tower '"):
        read_cache(path, first._provenance())
    assert read_cache(path, second._provenance())[0] == [TEXTS[0]]


def with_other_weights(_):
    tower = make()
    with torch.no_grad():
        tower.transformer.positional_embedding.mul_(2)
    return tower


def patched(owner, name, value):
    return lambda patch: patch.setattr(owner, name, value) or make()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_other_weights, "tower '"),
        (lambda _: make(heads=4), "tower '"),
        (lambda _: make(torch.bfloat16), "dtype 'torch.float32', not 'torch.bfloat16'"),
        (patched(text_module, "__version__", "9.9"), "not 'nextreid 9.9"),
        (patched(torch, "get_num_threads", lambda: 77), ", 77 threads'"),
        (patched(torch, "get_float32_matmul_precision", lambda: "medium"), "float32 products 'highest', not 'medium'"),
    ],
    ids=["weights", "heads", "dtype", "version", "threads", "precision"],
)
def test_a_file_of_another_origin_is_made_anew(change, named, tmp_path, caplog, monkeypatch):
    first, path = make(), tmp_path / "texts.safetensors"
    first.open_cache(path)
    first.encode([[t] for t in TEXTS[:10]])
    first.save_cache()
    tower = change(monkeypatch)
    tower.open_cache(path)
    watch = Watch(tower)
    tower.encode([[t] for t in TEXTS[5:20]])
    assert watch.texts == TEXTS[5:20]
    assert len(caplog.messages) == 1 and "is not read: it was made with" in caplog.text and named in caplog.text
    assert tower.save_cache()
    texts, rows = read_cache(path, tower._provenance())
    assert texts == TEXTS[5:20] and torch.equal(rows, tower.cache.look_up(texts))


def whole(tmp_path):
    path = tmp_path / "texts.safetensors"
    rows = torch.arange(40.0).view(8, 5)
    write_cache(path, ORIGIN, TEXTS[:8], rows)
    return path, rows


def test_whatever_is_damaged_is_found(tmp_path):
    path, rows = whole(tmp_path)
    content = path.read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(content) - 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "zero"]))
    def law(at, mask, how):
        flipped = content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
        damaged = {"flip": flipped, "cut": content[:at], "zero": content[:at] + bytes(len(content) - at)}[how]
        path.write_bytes(damaged)
        try:
            texts, found = read_cache(path, ORIGIN)
        except ValueError:
            return
        assert texts == TEXTS[:8] and torch.equal(found, rows)

    law()
    path.write_bytes(content)
    assert read_cache(path, ORIGIN)[0] == TEXTS[:8]


def test_a_damaged_file_is_told_and_replaced(tmp_path, caplog):
    tower, path = make(), tmp_path / "texts.safetensors"
    tower.open_cache(path)
    tower.encode([[t] for t in TEXTS])
    tower.save_cache()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    for damaged in (bytes(content), b"", b"nonsense" * 100):
        path.write_bytes(damaged)
        again = make()
        again.open_cache(path)
        caplog.clear()
        assert torch.equal(again.encode([[TEXTS[1]]]), tower.encode([[TEXTS[1]]]))
        assert "is not read: " in caplog.text and "is damaged" in caplog.text
        assert again.save_cache() and read_cache(path, again._provenance())[0] == [TEXTS[1]]


def test_other_files_are_never_replaced(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2)}, {"version": "1"})
    tower = make()
    for name in ("theirs", "model"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors holds other tensors"):
            tower.open_cache(tmp_path / f"{name}.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for bad in (tmp_path / "captions.json", tmp_path / "folder.safetensors"):
        with pytest.raises(ValueError, match=r"ends in \.safetensors"):
            tower.open_cache(bad)
    assert not tower.save_cache()


def test_two_towers_merge_in_one_file_and_it_stays_bounded(tmp_path):
    path, towers = tmp_path / "texts.safetensors", [make(cache_bytes=30 * 64) for _ in range(2)]
    for tower, texts in zip(towers, (TEXTS[:12], TEXTS[8:20]), strict=True):
        tower.open_cache(path)
        tower.encode([[TEXTS[-1]]])  # both have read the file before either writes
        tower.encode([[t] for t in texts])
    assert all(tower.save_cache() for tower in towers)
    texts, rows = read_cache(path, towers[0]._provenance())
    assert sorted(texts) == sorted([*TEXTS[:20], TEXTS[-1]])
    assert torch.equal(rows, torch.cat([make()._encode([t]) for t in texts]))
    towers[0].encode([[t] for t in TEXTS[20:40]])
    assert towers[0].save_cache()
    texts, _ = read_cache(path, towers[0]._provenance())
    assert len(texts) == len(set(texts)) == 30 and texts[-20:] == TEXTS[20:40]


def write_often(path, who):
    for i in range(40):
        texts = [f"{who} {k}" for k in range(20 + 5 * (i % 8))]
        write_cache(path, ORIGIN, texts, torch.full((len(texts), 64), float(who)))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_processes_that_write_at_once_leave_a_whole_file_at_any_moment(tmp_path):
    path = tmp_path / "texts.safetensors"
    write_often(path, 9)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_often, args=(path, who)) for who in (1, 2)]
    for writer in writers:
        writer.start()
    seen, reads = set(), 0
    while any(writer.is_alive() for writer in writers) or not reads:
        texts, rows = read_cache(path, ORIGIN)  # raises if it is not whole
        seen.add(texts[0][0])
        reads += 1
        assert rows.shape == (len(texts), 64) and (rows == float(texts[0][0])).all()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen & {"1", "2"} and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path, caplog, monkeypatch):
    tower, path = make(), tmp_path / "texts.safetensors"
    tower.open_cache(path)
    tower.encode([[t] for t in TEXTS[:3]])
    assert tower.save_cache()
    kept = path.read_bytes()
    expected = tower.encode([[t] for t in TEXTS])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write past it fails as on a full disk
    try:
        assert not tower.save_cache()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: open("/dev/null/no"))
        assert not tower.save_cache()
    assert "the text cache is not saved: " in caplog.text
    assert path.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert tower.save_cache() and len(read_cache(path, tower._provenance())[0]) == len(TEXTS)
    tower.open_cache(path / "no folder" / "texts.safetensors")
    assert torch.equal(tower.encode([[t] for t in TEXTS]), expected)
    caplog.clear()
    tower.encode([["new"]])
    assert not tower.save_cache() and "is not saved" in caplog.text


@pytest.mark.parametrize(
    ("folder", "captions", "share", "longest"), [("RGBNT201", 11853, "0.2%", 89), ("MSVR310", 3096, "96.2%", 97)]
)
def test_published_captions_over_the_window_are_counted_and_not_cut(
    published_captions, folder, captions, share, longest
):
    if not (published_captions / "NEXT" / folder).is_dir():
        pytest.skip(f"no NEXT/{folder} in {published_captions}")
    tower = make()
    texts = [
        text
        for path in sorted((published_captions / "NEXT" / folder).glob("train_*.json"))
        for text in read_captions(path).values()
    ]
    counts = [tower.count_tokens(text) for text in texts]
    assert len(texts) == captions and max(counts) == longest
    assert f"{sum(count > CONTEXT for count in counts) / captions:.1%}" == share
    long = [place for place, count in enumerate(counts) if count > CONTEXT]
    for place in sorted({*range(0, len(texts), 10), *long[:200]}):
        text, count = texts[place], counts[place]
        windows = tower.windows(split_sentences(text))
        assert (len(windows) > 1) == (count > CONTEXT)
        assert " ".join(windows) == " ".join(text.split()) and max(map(tower.count_tokens, windows)) <= CONTEXT
