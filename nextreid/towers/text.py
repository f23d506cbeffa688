"""Captions to features: open_clip's text transformer and tokenizer, frozen."""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain, islice
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from .._files import tensors_digest
from .._schema import either, flag, number, optional, table, whole, word
from ..version import __version__
from .image import width_kind
from .packing import pack_sentences
from .text_cache import TextFeatureCache

CONTEXT = 77
VOCABULARY = 49_408
_SMALLEST = 2 * 256 + 2  # a byte inside and at the end of a word, the start and the end of a text
Caption = Sequence[str] | str | None
TEXT_DEFAULTS = {"mlp_ratio": 4.0, "ls_init_value": None, "vocab_size": VOCABULARY, "quick_gelu": True}
text_tower_kind = either(
    word,
    table(
        {
            "width": width_kind,
            "heads": whole(1, 256),
            "layers": whole(1, 256),
            "mlp_ratio": number(0.01, 64),
            "ls_init_value": optional(number(0, 1e6)),
            "vocab_size": whole(_SMALLEST, VOCABULARY),
            "quick_gelu": flag,
            "context_length": whole(CONTEXT, CONTEXT),
        },
        "setting of a text tower",
    ),
)
"""An open_clip name or the settings of a text tower, which are plain; those that are missing are `TEXT_DEFAULTS`."""
# The last bits of a product depend on the shapes of its factors, so that a text is always computed in one shape: of so
# many texts and a multiple of so many tokens. On a CPU that is the text alone, and no token behind its end; another
# device would spend its time on starting kernels, so that texts of about one length go together, and copies with them.
_SHAPES = {"cpu": (1, 1)}
_SHAPE = (32, 16)
_CAPTIONS = 256
_WARM = 4096
_MEMO = 100_000

_logger = logging.getLogger(__name__)


@cache
def _tokenizer(vocab_size: int) -> open_clip.SimpleTokenizer:
    """CLIP's tokenizer; a smaller vocabulary is the bytes, the merges that were learned first, and the two ends.

    The marks of start and end are letters like others in a text: as tokens they would cut off what follows.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    tokenizer.cache = {}
    if vocab_size < VOCABULARY:
        pieces = list(tokenizer.encoder)
        tokenizer.encoder = {piece: i for i, piece in enumerate(pieces[: vocab_size - 2] + pieces[-2:])}
        tokenizer.decoder = {i: piece for piece, i in tokenizer.encoder.items()}
        tokenizer.bpe_ranks = dict(islice(tokenizer.bpe_ranks.items(), vocab_size - _SMALLEST))
        tokenizer.vocab_size = vocab_size
        tokenizer.sot_token_id, tokenizer.eot_token_id = vocab_size - 2, vocab_size - 1
        tokenizer.all_special_ids = [vocab_size - 2, vocab_size - 1]
    return tokenizer


@lru_cache(_MEMO)
def _encode_word(vocab_size: int, word: str) -> list[int]:
    return _tokenizer(vocab_size).encode(word)


class TextTower(nn.Module):
    """CLIP's text transformer, frozen, and a cache of what it has encoded.

    Each distinct text is encoded once, as long as the cache has room and the weights stay as they are. A feature from
    the cache equals a fresh one to the last bit on the same device.

    Args:
        name: An open_clip model whose text tower is a transformer of open_clip, such as ``ViT-B-16-quickgelu``, or its
            settings (``{"width": 64, "heads": 2, "layers": 2}``). With ``vocab_size`` below CLIP's 49,408 a text is
            cut into the pieces of CLIP's first merges: rarer words take more tokens, and the table is smaller.
        embed_dim: Width D of the features; None takes the named model's.
        cache_bytes: Most bytes of features to keep, on the tower's device; the oldest go first. 0 keeps none.

    Raises:
        ValueError: If open_clip has no such model, or its text tower is not a plain CLIP transformer.
    """

    def __init__(
        self,
        name: str | Mapping[str, Any] = "ViT-B-16-quickgelu",
        embed_dim: int | None = None,
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        super().__init__()
        name, embed_dim = text_tower_kind("text_tower", name), optional(width_kind)("embed_dim", embed_dim)
        if isinstance(name, str):
            config = open_clip.get_model_config(name)
            if config is None:
                raise ValueError(f"open_clip has no model named {name!r}; see open_clip.list_models()")
            settings, quick, width = dict(config["text_cfg"]), config.get("quick_gelu", False), config["embed_dim"]
        else:
            settings = {**TEXT_DEFAULTS, **name}
            quick, width = settings.pop("quick_gelu"), embed_dim
        if embed_dim is not None and embed_dim != width:
            raise ValueError(
                f"the text tower {name!r} gives {width} features but embed_dim={embed_dim}; captions and patches are "
                "compared in one space, so give both towers one width"
            )
        if "hf_model_name" in settings or settings.get("context_length", CONTEXT) != CONTEXT:
            raise ValueError(f"the text tower of {name!r} is not a CLIP transformer with a window of {CONTEXT} tokens")
        vocab_size = settings.get("vocab_size", VOCABULARY)
        if not _SMALLEST <= vocab_size <= VOCABULARY:
            raise ValueError(
                f"vocab_size={vocab_size} of the text tower of {name!r} is not CLIP's: {_SMALLEST} to {VOCABULARY}"
            )
        try:
            self.transformer = TextTransformer(
                output_dim=width, act_layer=QuickGELU if quick else nn.GELU, **{"context_length": CONTEXT, **settings}
            )
        except Exception as error:  # open_clip's layers assert
            raise ValueError(f"open_clip's text transformer rejects the settings {settings}: {error}") from error
        if self.transformer.pool_type != "argmax" or self.transformer.attn_mask is None:
            raise ValueError(f"the text tower of {name!r} does not read its feature at the end token as CLIP does")
        self.embed_dim: int = width
        self.vocab_size: int = vocab_size
        self.cache = TextFeatureCache(cache_bytes)
        self._settings = {"quick_gelu": quick, "embed_dim": width, **settings}
        self._identity: str | None = None
        self._weights_seen: tuple[tuple[int, torch.dtype, int], ...] | None = None
        self._packed: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "TextTower":
        """Stay in evaluation mode: the tower is frozen."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextTower":
        before = self._weights()
        super()._apply(fn, recurse)
        if self._weights() != before:
            self.clear_cache()
        return self

    def clear_cache(self) -> None:
        """Forget every encoded text.

        This happens by itself when weights are loaded, moved, cast or changed in place; only an optimiser's fused step
        cannot be seen. While a weight requires a gradient, nothing is kept.
        """
        self.cache.clear()
        self._identity = None

    def tokenize(self, texts: list[str]) -> Tensor:
        """CLIP's byte-pair tokens ``(n, 77)``, start and end included, zero after the end.

        Raises:
            ValueError: If a text does not fit; pack its sentences into windows first.
        """
        tokenizer, rows = _tokenizer(self.vocab_size), []
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        for text in texts:
            ids = [start, *chain.from_iterable(self._pieces(text)), end]
            if len(ids) > CONTEXT:
                raise ValueError(
                    f"a text of {len(ids)} tokens does not fit CLIP's window of {CONTEXT}: {text[:80]!r}..."
                )
            rows.append(ids + [0] * (CONTEXT - len(ids)))
        return torch.tensor(rows, dtype=torch.long).view(len(texts), CONTEXT)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, the start and the end token included, uncut."""
        return 2 + sum(map(len, self._pieces(text)))

    def _pieces(self, text: str) -> list[list[int]]:
        # No token spans white space, so that the words of a text are tokenised alone, each once. What the tokenizer
        # repairs first (broken Unicode, HTML entities, control characters) may span words and is not plain ASCII.
        if not (text.isascii() and text.isprintable() and "&" not in text):
            return [_tokenizer(self.vocab_size).encode(text)]
        return [_encode_word(self.vocab_size, word) for word in text.split()]

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids ``(n, L)``, L up to 77, to features ``(n, D)``, not normalised.

        The transformer is causal and the feature is read at the end token: columns behind it are not computed.
        """
        length = int(tokens.argmax(-1).max()) + 1 if tokens.numel() else 1
        return self._forward(tokens[:, :length])

    def _forward(self, tokens: Tensor) -> Tensor:
        tower, length = self.transformer, tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)
        return x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ tower.text_projection

    def windows(self, caption: Caption) -> tuple[str, ...]:
        """Pack a caption (its sentences, one string, or None) into as few texts as fit the tower, nothing cut off."""
        sentences = (caption,) if isinstance(caption, str) else tuple(caption or ())
        found = self._packed.get(sentences)
        if found is None:
            if len(self._packed) >= _MEMO:
                self._packed.clear()
            found = self._packed[sentences] = tuple(pack_sentences(sentences, self.count_tokens))
        return found

    @torch.no_grad()
    def encode(self, windows: Sequence[Sequence[str]]) -> Tensor:
        """Encode n captions, each given as `windows` of at most 77 tokens; one without windows is absent.

        A caption's feature does not depend on the captions beside it, nor on what was encoded before.

        Returns:
            ``(n, D)``: the mean of a caption's unit window features, made unit again; zero for an absent caption.

        Raises:
            ValueError: If a text does not fit.
        """
        weight = self._ready()
        out = weight.new_zeros(len(windows), self.embed_dim)
        texts = list(dict.fromkeys(text for row in windows for text in row))
        if not texts:
            return out
        known, new = ([text for text in texts if (text in self.cache) == cached] for cached in (True, False))
        found = [self.cache.look_up(known)] if known else []
        if new:
            found.append(self._encode(new))
            self.cache.add(new, found[-1])
        at, features = {text: row for row, text in enumerate(known + new)}, torch.cat(found)
        for count in sorted({len(row) for row in windows} - {0}):
            captions = [i for i, row in enumerate(windows) if len(row) == count]
            for start in range(0, len(captions), _CAPTIONS):
                chunk = captions[start : start + _CAPTIONS]
                rows = [at[text] for i in chunk for text in windows[i]]
                rows += rows[:count] * (_CAPTIONS - len(chunk))
                parts = features.index_select(0, torch.tensor(rows, device=weight.device))
                mean = parts.unflatten(0, (_CAPTIONS, count)).mean(1)
                out[torch.tensor(chunk, device=weight.device)] = F.normalize(mean, dim=-1)[: len(chunk)]
        return out

    @torch.no_grad()
    def precompute(self, captions: Iterable[Caption]) -> int:
        """Encode captions ahead, so that `encode` finds them, as far as the cache has room; log the progress.

        Returns:
            Number of texts that were encoded.
        """
        weight = self._ready()
        texts = dict.fromkeys(text for caption in captions for text in self.windows(caption))
        room = self.cache.max_bytes // (self.embed_dim * weight.element_size())
        if len(texts) > room:
            _logger.warning("the text cache has room for %d of %d texts: give it more cache_bytes", room, len(texts))
        new = sorted([text for text in texts if text not in self.cache][:room], key=self.count_tokens)
        for start in range(0, len(new), _WARM):
            chunk = new[start : start + _WARM]
            self.cache.add(chunk, self._encode(chunk))
            _logger.info("text tower: %d of %d texts encoded", start + len(chunk), len(new))
        return len(new)

    def open_cache(self, path: str | os.PathLike[str]) -> None:
        """Let a ``.safetensors`` file, there or not, keep the cache from run to run.

        It is read when it is first needed, and written by `save_cache`. A file that is damaged, or of another tower,
        device or library, is not used: a warning says so, and the next `save_cache` replaces it.

        Raises:
            ValueError: If the path cannot be that of a cache, or another file lies there.
        """
        self.cache.open(path)

    def save_cache(self) -> bool:
        """Write the cache to the file of `open_cache`, together with what other processes wrote there.

        Returns:
            Whether the file holds the whole cache now; False if none was opened. A full disk is a logged warning.
        """
        self._ready()
        return self.cache.save(self._provenance)

    def _weights(self) -> tuple[tuple[int, torch.dtype, int], ...] | None:
        """What tells that a weight was replaced or written to; None while any is being trained."""
        weights = list(self.parameters())
        if any(p.requires_grad for p in weights):
            return None
        return tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in weights)

    def _ready(self) -> Tensor:
        """Bring the cache up to date; return a weight, for its device and type."""
        weights = self._weights()
        if weights is None or weights != self._weights_seen:
            self.clear_cache()
            self._weights_seen = weights
        weight = self.transformer.token_embedding.weight
        self.cache.load(self._provenance, weight.device)
        return weight

    def _provenance(self) -> dict[str, str]:
        """What features depend on besides the text, to the last bit."""
        self._identity = self._identity or tensors_digest(
            self.state_dict(), json.dumps(self._settings, sort_keys=True, default=str)
        )
        weight = self.transformer.token_embedding.weight
        device = weight.device.type
        if device == "cuda":
            device = torch.cuda.get_device_name(weight.device)
        if device == "cpu":
            capability = torch.backends.cpu.get_cpu_capability()
            device = f"{platform.machine()} {capability}, {torch.get_num_threads()} threads"
        return {
            "tower": self._identity,
            "dtype": str(weight.dtype),
            "device": device,
            "float32 products": torch.get_float32_matmul_precision(),
            "library": f"nextreid {__version__}, torch {torch.__version__}, open_clip {open_clip.__version__}",
        }

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Compute the unit features ``(n, D)`` of texts."""
        weight = self.transformer.token_embedding.weight
        tokens = self.tokenize(list(texts))
        rows, step = _SHAPES.get(weight.device.type, _SHAPE)
        lengths = ((tokens.argmax(-1) // step + 1) * step).clamp(max=CONTEXT)
        out = weight.new_empty(len(texts), self.embed_dim)
        with torch.autocast(weight.device.type, enabled=False):
            for length in lengths.unique().tolist():
                for chunk in (lengths == length).nonzero()[:, 0].split(rows):
                    batch = torch.cat([chunk, chunk[:1].expand(rows - len(chunk))])
                    features = self._forward(tokens[batch, :length].to(weight.device))
                    out[chunk.to(weight.device)] = F.normalize(features, dim=-1)[: len(chunk)]
        return out
