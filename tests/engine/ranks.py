"""What each process of the distributed tests does; started by torchrun: ranks.py CONFTEST OUT."""

import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from nextreid.engine import (
    Condition,
    EmbedOptions,
    distributed,
    embed_samples,
    evaluate,
    extract,
    get_recipe,
    modality_matrix,
    process_group,
    train,
)
from nextreid.models import create_model


def build(seed, **kwargs):
    torch.manual_seed(seed)
    return create_model("next_tiny", **kwargs)


def recipe_of(**changes):
    """Adam with coupled decay, whose step depends on the gradient's size: a mean in place of a sum would show."""
    fields = {"epochs": 3, "num_ids": 4, "num_instances": 2, "warmup_epochs": 1}
    return get_recipe("tiny", **{**fields, "optimizer": "adam", "weight_decay": 0.01, **changes})


def several_heads():
    """UniCat, which has a head for each modality, with losses of its own: of rows, and of whole batches and epochs."""
    torch.manual_seed(0)
    model = create_model("unicat_tiny")
    model.own_losses = lambda features: {"size": 0.1 * features["cls"].square().mean()}
    model.loss_parts = ("cls",)
    moved = []

    def start_epoch(epoch, embed):
        vectors, labels = embed(None)
        moved[:] = [epoch * vectors[labels == 1].mean()]

    def after_step(features, pid):
        moved[0] = moved[0] + features["cls"][pid == pid[-1]].mean()

    def identity_losses(features, pid):
        return {"whole": moved[0] * features["cls"][pid == pid[0]].mean(0).square().sum()}

    model.start_epoch, model.after_step, model.identity_losses = start_epoch, after_step, identity_losses
    return model


def with_holes(dataset):
    train = [replace(s, images=(s.images[0], None, s.images[2])) if s.camid else s for s in dataset.train]
    return replace(dataset, train=tuple(train))


def run_training(data, out, seed=0, resume=False, model=None, dataset=None, **changes):
    """Train, by default NEXT without dropout; return losses and images of every step."""
    model, steps = model or build(seed, head={"drop": 0.0}), []
    loop = sys.modules[train.__module__]._Epoch
    step = loop._step

    def watched(self, batch, criterion, where):
        losses, norm = step(self, batch, criterion, where)
        pixels = [hashlib.blake2b(image.numpy(), digest_size=8).hexdigest() for image in batch.images]
        samples = list(zip(batch.keys, pixels, batch.draws, batch.pid.tolist(), strict=True))
        steps.append({"samples": samples, "losses": losses, "seed": torch.initial_seed()})
        return losses, norm

    loop._step = watched
    try:
        report = train(model, dataset or data.make_dataset(), recipe_of(**changes), out, resume=resume, progress=False)
    finally:
        loop._step = step
    return report, steps, model


def run_several_heads(data, out):
    holes = with_holes(data.make_dataset())
    return run_training(data, out, model=several_heads(), dataset=holes, contrast_weight=0.5)


def weights_of(model):
    return hashlib.blake2b(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def numbers(report):
    row = report.to_dict()
    row.pop("seconds")
    return {**row, "ap": report.result.ap.tolist()}


def measurements(data, out):
    dataset = data.make_dataset(each=2)
    model = build(3, num_classes=6)
    extract(model, dataset.query, out / "vectors", options=EmbedOptions(4), normalize=False)
    embedded = embed_samples(
        model, dataset.query[:3], Condition(), EmbedOptions(4)
    )  # the second process has none of them
    return {
        "plain": numbers(evaluate(model, dataset, options=EmbedOptions(5))),
        "sides": numbers(evaluate(model, dataset, protocol="camera:tir>rgb+nir", options=EmbedOptions(5))),
        "matrix": [numbers(report) for report in modality_matrix(model, dataset, options=EmbedOptions(5))],
        "few": embedded.tolist(),
    }


def failures(data, out):
    """What goes wrong in one process must end all of them, with one message."""
    told = {}

    def refused(name, call):
        try:
            call()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
        else:
            told[name] = "nothing happened"

    dataset, rank = data.make_dataset(each=2), distributed.rank()
    refused("exists", lambda: train(build(0), dataset, recipe_of(), out / "run", progress=False))
    refused("uneven", lambda: train(build(0), dataset, recipe_of(num_ids=3), out / "uneven", progress=False))
    model = build(0, head={"drop": 0.0})
    if rank == 1:
        model.head.mmfa.register_forward_hook(lambda module, args, output: output * float("nan"))
    refused("nan", lambda: train(model, dataset, recipe_of(), out / "nan", progress=False))
    blind = build(0, head={"drop": 0.0})
    if rank == 1:
        blind.head.mmfa.register_full_backward_hook(lambda module, inner, outer: (inner[0] * float("inf"), *inner[1:]))
    refused("gradient", lambda: train(blind, dataset, recipe_of(), out / "inf", progress=False))
    module = sys.modules[train.__module__]
    save = module.save_state

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    module.save_state = full_disk
    refused("disk", lambda: train(build(0), dataset, recipe_of(), out / "disk", progress=False))
    module.save_state = save
    refused("odd", lambda: distributed.on_main(lambda: Odd.fail()))
    return told


class Odd(Exception):
    """An error that cannot be sent as it is."""

    def __init__(self, a, b):
        super().__init__("odd one")

    @classmethod
    def fail(cls):
        raise cls(1, 2)


def exchanges():
    rank, world = distributed.rank(), distributed.world_size()
    rows = torch.full((2, 3), float(rank), dtype=torch.bfloat16, requires_grad=True)
    gathered = distributed.all_gather(rows)
    (gathered * torch.arange(1, 4 * 3 + 1).view(4, 3)).sum().backward()
    a, b, c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, c.grad = torch.tensor([1.0, rank]), torch.tensor([4.0, 6.0])
    if rank == 1:
        b.grad = torch.tensor([5.0, 5.0])
    unused = torch.nn.Parameter(torch.zeros(3))
    distributed.all_reduce_gradients([a, unused, b, c], everywhere=[c])
    return {
        "world": world,
        "rows": gathered.tolist(),
        "own gradient": rows.grad.tolist(),
        "grads": [a.grad.tolist(), unused.grad, b.grad.tolist(), c.grad.tolist()],
        "lists": distributed.all_gather_objects([rank] * (rank + 1)),
        "first": distributed.broadcast(f"from {rank}"),
    }


def main():
    spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    torch.set_num_threads(1)
    out = Path(sys.argv[2])
    with process_group("cpu"):
        rank = dist.get_rank()
        # Other first weights than the first process has: they must not count.
        report, steps, model = run_training(data, out / "run", seed=rank)
        result = {
            "exchanges": exchanges(),
            "steps": steps,
            "history": report.history,
            "measurements": measurements(data, out),
            "weights": weights_of(model),
            "failures": failures(data, out),
        }
        resumed, more, _ = run_training(data, out / "one", seed=rank, resume=True)  # begun by one process
        result["resumed"] = {"steps": more, "epochs": len(resumed.history)}
        _, steps, model = run_several_heads(data, out / "heads")
        result["heads"] = {"losses": [step["losses"] for step in steps], "weights": weights_of(model)}
        (out / f"rank{rank}.json").write_text(json.dumps(result))
        distributed.on_main(lambda: None)


if __name__ == "__main__":
    main()
