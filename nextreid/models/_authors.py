"""Weights that a method's authors released: declared name maps, strict both ways."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._files import check_out_folder, user_path
from .._names import clip, unknown
from ._base import ReIDModel
from ._convert import read_third_party
from ._factory import create_model
from ._hub import CONFIG, sha256
from ._publish import save_pretrained

State = Mapping[str, Tensor]
_INDEX = re.compile(r"\[([\d,]+)\]$")


class Rule(NamedTuple):
    r"""Where tensors of the authors' go.

    Attributes:
        pattern: Regular expression of whole names in the authors' files.
        ours: Our name, with ``\1`` for the first group of the pattern, and so on. Several names share the tensor in
            equal parts of its first axis, an empty one leaves its part out; a name that ends in ``[2]`` or ``[2,0]`` is
            that entry of a stacked parameter.
        layout: ``""``: as it is; ``"T"``: transposed; ``"reshape"``: the same numbers in our shape.
    """

    pattern: str
    ours: str | tuple[str, ...]
    layout: str = ""


@dataclass(frozen=True)
class Authors:
    r"""What a method's authors released, and how it becomes ours.

    Attributes:
        title: The method as its paper names it.
        repository: Where the authors' code is, ``owner/name`` on GitHub.
        license: Of their repository; empty where it has none.
        model: Entrypoint of ours that their files fill by default.
        rules: One fits every tensor that is used; a function where they depend on the authors' tensors.
        arguments: Arguments of the model that a file's shapes tell, such as ``num_classes`` and ``num_cameras``.
        dropped: Patterns of the authors' names that no embedding needs, with the reason.
        kept: Patterns of our names that their files do not hold.
        check: Raises ValueError on what rules cannot say, given the authors' tensors.
    """

    title: str
    repository: str
    license: str
    model: str
    rules: Sequence[Rule] | Callable[[State], Sequence[Rule]]
    arguments: Callable[[State], dict[str, Any]]
    dropped: Mapping[str, str] | None = None
    kept: Sequence[str] = ()
    check: Callable[[State], None] | None = None


class AuthorsConversion(NamedTuple):
    """What `convert_authors` did.

    Attributes:
        folder: The checkpoint folder.
        model: Entrypoint of the model in it.
        arguments: What the file's shapes say of the model.
        filled: Number of the authors' tensors that fill the model.
        notes: What was unpacked or dropped on the way, in words.
    """

    folder: Path
    model: str
    arguments: dict[str, Any]
    filled: int
    notes: tuple[str, ...]


_AUTHORS: dict[str, Authors] = {}


def register_authors(method: str, authors: Authors) -> None:
    """Let ``nextreid convert --from METHOD`` read the files of a method's authors.

    Raises:
        ValueError: If another name map has that name already.
    """
    if _AUTHORS.setdefault(method, authors) is not authors:
        raise ValueError(f"a name map for {method!r} is registered already")


def list_authors() -> list[str]:
    """Methods whose authors' weights can be converted, sorted."""
    return sorted(_AUTHORS)


def get_authors(method: str) -> Authors:
    """The name map of a method.

    Raises:
        KeyError: If there is none; the message proposes near names.
    """
    if method not in _AUTHORS:
        raise KeyError(unknown("method", method, list_authors()))
    return _AUTHORS[method]


def convert_authors(
    method: str,
    source: str | Path,
    folder: str | Path,
    model_name: str | None = None,
    *,
    overwrite: bool = False,
    **model_args: Any,
) -> AuthorsConversion:
    """Read what a method's authors released and write it as a checkpoint folder.

    Args:
        method: One of `list_authors`, such as ``"demo"``.
        source: Their ``state_dict``: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin``, which are read by
            ``torch.load(weights_only=True)`` and in no other way.
        folder: Where to write.
        model_name: Entrypoint to fill; None for the method's own for persons.
        overwrite: Whether a checkpoint folder there may be replaced.
        **model_args: Arguments of the model that no file tells, such as ``img_size``.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If the folder exists and `overwrite` is False.
        KeyError: If the method is unknown.
        ValueError: If the file is damaged, holds more than tensors, or is no checkpoint of the method; the message
            says what is missing, what is left over, and which method it looks like.

    Example:
        >>> convert_authors("demo", "DeMo.pth", "demo-rgbnt201")  # doctest: +SKIP
    """
    authors, source, folder = get_authors(method), user_path(source), user_path(folder)
    check_out_folder(folder, (CONFIG,))
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; take another folder, or replace it (overwrite=True, --overwrite)")
    state, notes = read_third_party(source)
    try:
        model, found, more = build_from_authors(method, state, model_name, **model_args)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    notes += more
    terms = f"license of the code: {authors.license}" if authors.license else "the code has no license"
    text = (
        f"{authors.title}, from {source.name} (sha256 {sha256(source)}) by the authors ({authors.repository}; {terms})."
    )
    # All of them resize by bilinear interpolation at test, whatever they do in training.
    model.pretrained_cfg = model.pretrained_cfg.replace(clip=None, timm=False, interpolation="bilinear", notes=text)
    save_pretrained(model, folder)
    dropped = sum(_dropped(authors, key) is not None for key in state)
    name = model_name or authors.model
    return AuthorsConversion(folder, name, found, len(state) - dropped, tuple(notes))


def build_from_authors(
    method: str, state: State, model_name: str | None = None, **model_args: Any
) -> tuple[ReIDModel, dict[str, Any], list[str]]:
    """Build a method's model and fill it with its authors' tensors.

    Args:
        method: One of `list_authors`.
        state: Tensors in the authors' names.
        model_name: Entrypoint to fill; None for the method's own for persons.
        **model_args: Arguments of the model; they win over what shapes tell.

    Returns:
        The model, what shapes say of its arguments, and what was dropped, in words.

    Raises:
        KeyError: If the method is unknown.
        ValueError: If the tensors are not those of the method.
    """
    authors = _for(get_authors(method), state)
    try:
        if strange := [key for key in state if _rule(authors, key) is None and _dropped(authors, key) is None]:
            raise ValueError(f"{len(strange)} tensors have no place in it: {_some(strange)}")
        found = authors.arguments(state)
        if authors.check:
            authors.check(state)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"this is no checkpoint of {authors.title}: {reason}{_looks_like(method, state)}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(model_name or authors.model, **{**found, **model_args})
    model.load_state_dict(rename(authors, state, model.state_dict(), model.of_identities))
    reasons = Counter(why for key in state if (why := _dropped(authors, key)))
    return model, found, [f"dropped {count} tensors: {reason}" for reason, count in reasons.items()]


def rename(
    authors: Authors, state: State, wanted: State, of_identities: Sequence[str] = ("necks",)
) -> dict[str, Tensor]:
    """Bring the authors' tensors into our names and shapes.

    Args:
        authors: The name map.
        state: Tensors in the authors' names, all of which the map knows.
        wanted: The state that is to be filled.
        of_identities: Modules of ours that a model with ``num_classes=0`` has not got.

    Raises:
        ValueError: If shapes do not fit, one place is filled twice with different numbers, or a place stays empty.
    """
    filled = {key: value.clone() for key, value in wanted.items()}
    places: dict[str, set[str]] = {key: set() for key in wanted}  # what of each tensor is filled: "" or indices
    sources: dict[tuple[str, str], str] = {}
    classified = any(key.startswith("necks.") for key in wanted)  # with num_classes=0 the heads stay behind
    for key in state:
        found = _rule(authors, key)
        if found is None:
            continue
        rule, match = found
        names = [match.expand(name) for name in ([rule.ours] if isinstance(rule.ours, str) else rule.ours)]
        for name, part in zip(names, state[key].chunk(len(names)) if len(names) > 1 else [state[key]], strict=True):
            index = _INDEX.search(name)
            ours, entry = (name[: index.start()], str(index[1])) if index else (name, "")
            of_others = ours.startswith(tuple(f"{name}." for name in of_identities)) and not classified
            if not ours or of_others:
                continue
            if ours not in filled:
                raise ValueError(f"{key} belongs to {ours}, which the model has not got: its arguments are of another")
            target = filled[ours][tuple(map(int, entry.split(",")))] if entry else filled[ours]
            part = part.T if rule.layout == "T" else part
            if rule.layout == "reshape" and part.numel() == target.numel():
                part = part.reshape(target.shape)
            if part.shape != target.shape:
                raise ValueError(
                    f"{key} is {tuple(part.shape)}, the model has {tuple(target.shape)} for it ({ours}): its images, "
                    "classes or cameras are of another number or size; name them as arguments of the model"
                )
            if (first := sources.setdefault((ours, entry), key)) != key:
                if not torch.equal(target, part.to(target.dtype)):
                    raise ValueError(f"{first} and {key} are one parameter, and the file has two different ones")
                continue
            target.copy_(part)
            places[ours].add(entry)
    empty = [key for key in wanted if not _full(places[key], wanted[key]) and not _matches(authors.kept, key)]
    if empty:
        raise ValueError(f"the file fills only a part of the model; {len(empty)} are left: {_some(empty)}")
    return filled


def clip_tower_rules(prefix: str, ours: str = "image_tower.0.") -> list[Rule]:
    """Rules of a CLIP vision transformer in OpenAI's names under a prefix, with its projection."""
    block = re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."
    old, new = re.escape(prefix), f"{ours}trunk."
    end = r"(weight|bias)"
    return [
        Rule(old + "class_embedding", new + "cls_token", "reshape"),
        Rule(old + "positional_embedding", new + "pos_embed", "reshape"),
        Rule(old + r"conv1\.weight", new + "patch_embed.proj.weight"),
        Rule(old + rf"ln_pre\.{end}", new + r"norm_pre.\1"),
        Rule(old + rf"ln_post\.{end}", new + r"norm.\1"),
        Rule(old + "proj", f"{ours}proj.weight", "T"),
        Rule(block + rf"ln_([12])\.{end}", new + r"blocks.\1.norm\2.\3"),
        Rule(block + rf"attn\.in_proj_{end}", new + r"blocks.\1.attn.qkv.\2"),
        Rule(block + rf"attn\.out_proj\.{end}", new + r"blocks.\1.attn.proj.\2"),
        Rule(block + rf"mlp\.c_fc\.{end}", new + r"blocks.\1.mlp.fc1.\2"),
        Rule(block + rf"mlp\.c_proj\.{end}", new + r"blocks.\1.mlp.fc2.\2"),
    ]


def vit_tower_rules(prefix: str, ours: str = "image_tower.0.") -> list[Rule]:
    """Rules of a TransReID vision transformer under a prefix, with its camera embedding."""
    old = re.escape(prefix)
    return [
        Rule(old + r"(cls_token|pos_embed|(?:patch_embed|blocks|norm)\..*)", rf"{ours}trunk.\1"),
        Rule(old + "sie_embed", f"{ours}camera", "reshape"),
    ]


def neck_rules(norm: str, classifier: str, ours: str) -> list[Rule]:
    """Rules of one batch norm and its classifier."""
    return [
        Rule(re.escape(norm) + r"\.(weight|bias|running_mean|running_var|num_batches_tracked)", rf"{ours}.norm.\1"),
        Rule(re.escape(classifier) + r"\.weight", f"{ours}.classifier.weight"),
    ]


def _for(authors: Authors, state: State) -> Authors:
    """The name map with the rules of these tensors."""
    return replace(authors, rules=authors.rules(state)) if callable(authors.rules) else authors


def _rule(authors: Authors, key: str) -> tuple[Rule, re.Match[str]] | None:
    rules: Sequence[Rule] = authors.rules  # type: ignore[assignment]  # see _for
    found = ((rule, re.fullmatch(rule.pattern, key)) for rule in rules)
    return next(((rule, match) for rule, match in found if match), None)


def _dropped(authors: Authors, key: str) -> str | None:
    return next((why for pattern, why in (authors.dropped or {}).items() if re.fullmatch(pattern, key)), None)


def _matches(patterns: Sequence[str], key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _full(entries: set[str], value: Tensor) -> bool:
    """Whether all of a tensor was filled: whole, or every entry of its first axes."""
    if "" in entries or not entries:
        return bool(entries)
    depth = next(iter(entries)).count(",") + 1
    return len(entries) == value.shape[:depth].numel()


def _looks_like(method: str, state: State) -> str:
    """Which other method's names these are, in words; empty where none."""
    for other, general in sorted(_AUTHORS.items()):
        authors = _for(general, state)
        known = sum(_rule(authors, key) is not None or _dropped(authors, key) is not None for key in state)
        if other != method and state and known == len(state):
            return f"; its names are those of {authors.title} (--from {other})"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(clip(name, 80) for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
