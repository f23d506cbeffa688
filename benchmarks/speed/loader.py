"""Images a second of one core, from JPEG files and from an image cache, against the chain of published code: goal P14.

Random JPEGs of three sizes become 256 x 128, in whole batches of 64 samples of three images, out of a loader without
workers. "Copying" is what the core has to do of device augmentation besides drawing and labels; "the device's part" is
`augment_batch` with this CPU as the device. The chain of the related methods is written here from what they publish,
and torchvision's is used too where that can be imported. CPU seconds of one thread, best of 5 in turn; results are
compared before anything is timed.
"""

import importlib
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from nextreid.data import (
    MODALITIES,
    Batch,
    EvalTransform,
    ImageCache,
    PKSampler,
    Sample,
    TrainTransform,
    augment_batch,
    make_loader,
    open_image,
)

from ..harness import best_in_turn

SOURCES = ((256, 128), (400, 240), (800, 480))
SAMPLES = 64
SIZE, MEAN, STD, PAD = (256, 128), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 10

PEERS, JPEG, QUICK = "peers' chain", "from JPEG", "from JPEG, resize='torch'"
STORE, COPYING = "store, CPU augment", "store, device augment: copying"
TARGETS: dict[str, tuple[str, Callable[[float, float], bool | str]]] = {
    QUICK: (">= 1.3 x peers", lambda rate, ratio: ratio >= 1.3),
    STORE: (">= 5000 images/s", lambda rate, ratio: rate >= 5000),
    COPYING: (">= 100000 images/s", lambda rate, ratio: rate >= 100_000),
}

Chain = Callable[[Path], torch.Tensor]


def run() -> Iterator[dict[str, Any]]:
    """Yield one row per size of the files and way to read them."""
    torch.set_num_threads(1)
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(_samples(Path(folder), source), f"{source[0]} x {source[1]}")


def _rows(samples: list[Sample], source: str) -> Iterator[dict[str, Any]]:
    files = [path for sample in samples for path in sample.images if isinstance(path, Path)]
    size = f"{source}, {np.mean([path.stat().st_size for path in files]) / 1024:.0f} KiB"
    transform, quick = (TrainTransform(SIZE, MEAN, STD, pad=PAD, resize=by) for by in ("pillow", "torch"))
    store = ImageCache.build(samples, MODALITIES, transform)
    rows = store.rows(samples, MODALITIES)
    sampler = PKSampler([sample.pid for sample in samples], 8, 8)

    def ours(transform: TrainTransform = transform, **options: Any) -> DataLoader:
        return make_loader(samples, transform, sampler=sampler, **options)

    raw = _check_batches(ours(), ours(store=store), ours(store=store, augment="device"), transform)
    loaders: dict[str, Iterable[object]] = {PEERS: _Peers(samples, _chain(0.5, PAD, 0.5)).loader()}
    _check_chain(_chain(0, 0, 0), files[0])
    if torchvision := _torchvision(0.5, PAD, 0.5):
        loaders["torchvision v1"] = _Peers(samples, torchvision).loader()
        _check_chain(_torchvision(0, 0, 0), files[0])
    loaders[JPEG], loaders[QUICK] = ours(), ours(quick)
    loaders[STORE], loaders["store, device augment: the loader's part"] = (
        ours(store=store),
        ours(store=store, augment="device"),
    )
    generator = torch.Generator().manual_seed(0)
    codes: dict[str, Callable[[], object]] = {name: partial(list, loader) for name, loader in loaders.items()}
    codes[COPYING] = lambda: store.take(rows, np.empty((*rows.shape, 3, *SIZE), np.uint8))
    codes["store, device augment: the device's part"] = lambda: augment_batch(raw, transform, generator)
    seconds = dict(zip(codes, best_in_turn(list(codes.values())), strict=True))
    for name, value in seconds.items():
        rate, ratio = len(files) / value, seconds[PEERS] / value
        target, met = TARGETS.get(name, ("", lambda *_: ""))
        yield {
            "goal": "P14",
            "what": name,
            "source": size,
            "images_per_s": round(rate),
            "peers_images_per_s": round(len(files) / seconds[PEERS]),
            "ratio": round(ratio, 2),
            "target": target,
            "met": met(rate, ratio),
        }


def _samples(folder: Path, source: tuple[int, int]) -> list[Sample]:
    """Smooth images with some noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(SAMPLES):
        paths = []
        for modality in MODALITIES:
            coarse = rng.integers(0, 256, (source[0] // 16, source[1] // 16, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize(source[::-1], Image.Resampling.BICUBIC)
            values = np.asarray(smooth) + rng.normal(0, 5, (*source, 3))
            paths.append(folder / f"{number}_{modality}.jpg")
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
        samples.append(Sample(f"{number:06}_cam1_0_00.jpg", number // 8, 0, -1, tuple(paths)))
    return samples


class _Peers(Dataset[torch.Tensor]):
    """Samples through a chain for each image, stacked as published code does."""

    def __init__(self, samples: list[Sample], chain: Chain) -> None:
        self.samples, self.chain = samples, chain

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.stack([self.chain(path) for path in self.samples[index].images if isinstance(path, Path)])

    def loader(self) -> DataLoader:
        return DataLoader(self, batch_size=SAMPLES)


def _chain(flip: float, pad: int, erase: float) -> Chain:
    """The published order: decode, resize, flip, pad, crop, to tensor, normalise, erase."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def chain(path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC)
        if random.random() < flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageOps.expand(image, pad, fill=0)
        top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        image = image.crop((left, top, left + SIZE[1], top + SIZE[0]))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        tensor.sub_(mean).div_(std)
        if random.random() < erase:
            for _ in range(10):
                area = random.uniform(0.02, 0.33) * math.prod(SIZE)
                aspect = math.exp(random.uniform(math.log(0.3), math.log(3.33)))
                height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if height < SIZE[0] and width < SIZE[1]:
                    top, left = random.randint(0, SIZE[0] - height), random.randint(0, SIZE[1] - width)
                    tensor[:, top : top + height, left : left + width] = torch.empty(3, height, width).normal_()
                    break
        return tensor

    return chain


def _torchvision(flip: float, pad: int, erase: float) -> Chain | None:
    try:
        transforms = importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError) as error:  # its extension does not fit every build of torch
        print(f"torchvision cannot be imported, its row is left out: {error}")
        return None
    chain = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(flip),
            transforms.Pad(pad),
            transforms.RandomCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            transforms.RandomErasing(erase, value="random"),
        ]
    )
    return lambda path: chain(Image.open(path).convert("RGB"))


def _check_chain(chain: Chain | None, path: Path) -> None:
    """Without draws, a chain gives what the library does, and resize='torch' the same to one level of 256."""
    assert chain is not None
    expected, near = (EvalTransform(SIZE, MEAN, STD, resize=by)([open_image(path)])[0] for by in ("pillow", "torch"))
    torch.testing.assert_close(chain(path), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(near, expected, rtol=0, atol=1.01 / 255 / min(STD))


def _check_batches(decoded: Any, read: Any, raw: Any, transform: TrainTransform) -> Batch:
    """The cache gives the batches that decoding gives; return one that the device is still to augment."""
    (a,), (b,), (batch,) = decoded, read, raw
    assert torch.equal(a.images, b.images)
    done = augment_batch(batch, transform, torch.Generator())
    moved = [a.images[..., 0, 0], done.images[..., 0, 0]]
    clear = (batch.augment_params[..., 5] == 0) & (a.images == done.images).flatten(2).all(2)
    assert clear.any() and moved[0][clear].equal(moved[1][clear])
    return batch
