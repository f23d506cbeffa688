"""Captions to features: open_clip's text transformers, frozen."""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from .._files import tensors_digest
from .._schema import either, flag, number, optional, table, whole, word
from ..version import __version__
from .packing import pack_sentences
from .text_cache import TextFeatureCache
from .tokenizer import SMALLEST, VOCABULARY, ClipTokenizer, HubTokenizer
from .trunk import width_kind

CONTEXT = 77
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
            "vocab_size": whole(SMALLEST, VOCABULARY),
            "quick_gelu": flag,
            "context_length": whole(8, CONTEXT),
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


class TextTower(nn.Module):
    """A text transformer of open_clip, frozen, and a cache of what it has encoded.

    Each distinct text is encoded once, as long as the cache has room and the weights stay as they are. A feature from
    the cache equals a fresh one to the last bit on the same device.

    Args:
        name: An open_clip model whose text tower is a transformer of open_clip: CLIPs, such as ``ViT-B-16-quickgelu``,
            EVA02 and PE-Core, and SigLIP and SigLIP2, whose tokenizer is fetched when it is first needed; or its
            settings (``{"width": 64, "heads": 2, "layers": 2}``). With ``vocab_size`` below CLIP's 49,408 a text is
            cut into the pieces of CLIP's first merges: rarer words take more tokens, and the table is smaller.
        embed_dim: Width D of the features; None takes the named model's.
        cache_bytes: Most bytes of features to keep, on the tower's device; the oldest go first. 0 keeps none.

    Raises:
        ValueError: If open_clip has no such model, or its text tower is not a plain transformer.
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
        self._settings = {"quick_gelu": quick, "embed_dim": width, **settings}
        act, norm = settings.pop("act_kwargs", None) or {}, settings.pop("norm_kwargs", None) or {}
        hub, cleaning = settings.pop("hf_tokenizer_name", None), settings.pop("tokenizer_kwargs", None) or {}
        if "hf_model_name" in settings or cleaning.keys() - {"clean"}:
            raise ValueError(f"the text tower of {name!r} is not a transformer of open_clip with a plain tokenizer")
        vocab_size = settings.get("vocab_size", VOCABULARY)
        if not hub and not SMALLEST <= vocab_size <= VOCABULARY:
            raise ValueError(
                f"vocab_size={vocab_size} of the text tower of {name!r} is not CLIP's: {SMALLEST} to {VOCABULARY}"
            )
        layers = {
            "act_layer": partial(QuickGELU if quick else nn.GELU, **act),
            "norm_layer": partial(LayerNorm, **norm),
        }
        try:
            self.transformer = TextTransformer(output_dim=width, **layers, **settings)
        except Exception as error:  # open_clip's layers assert
            raise ValueError(f"open_clip's text transformer rejects the settings {settings}: {error}") from error
        self._reads_end = self.transformer.pool_type == "argmax" and self.transformer.attn_mask is not None
        if not self._reads_end and (self.transformer.pool_type != "last" or self.transformer.attn_mask is not None):
            raise ValueError(
                f"the text tower of {name!r} reads its feature neither at the end token, as CLIP does, nor at the last "
                "place of its window, as SigLIP does"
            )
        self.tokenizer = HubTokenizer(str(name)) if hub else ClipTokenizer(vocab_size)
        self.context_length: int = self.transformer.context_length
        self.embed_dim: int = width
        self.vocab_size: int = vocab_size
        self.cache = TextFeatureCache(cache_bytes)
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
        """Token ids ``(n, L)`` of texts, filled up to the tower's window.

        Raises:
            ValueError: If a text does not fit; pack its sentences into windows first.
        """
        rows = []
        for text in texts:
            ids = self.tokenizer.ids(text)
            if len(ids) > self.context_length:
                raise ValueError(
                    f"a text of {len(ids)} tokens does not fit the tower's window of {self.context_length}: "
                    f"{text[:80]!r}..."
                )
            rows.append(ids + [self.tokenizer.pad] * (self.context_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long).view(len(texts), self.context_length)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, the marks of start and end included, uncut."""
        return self.tokenizer.count(text)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids ``(n, L)`` to features ``(n, D)``, not normalised.

        CLIP's transformer is causal and its feature is read at the end token: columns behind it are not computed.
        SigLIP's reads the last of all places of its window.
        """
        length = int(tokens.argmax(-1).max()) + 1 if tokens.numel() else 1
        return self._forward(tokens[:, :length] if self._reads_end else tokens)

    def _forward(self, tokens: Tensor) -> Tensor:
        x = self.run_words(self.embed_words(tokens))
        return self.project(x[torch.arange(len(x), device=x.device), self.places(tokens)])

    def places(self, tokens: Tensor) -> Tensor:
        """Where the feature of each text ``(n, L)`` is read, ``(n,)``: at its end token, or at the last place."""
        return tokens.argmax(-1) if self._reads_end else torch.full_like(tokens[:, 0], tokens.shape[1] - 1)

    def read_length(self, text: str) -> int:
        """Number of leading tokens that the feature of a text depends on, which is read at the last of them."""
        return self.count_tokens(text) if self._reads_end else self.context_length

    def embed_words(self, tokens: Tensor) -> Tensor:
        """Embeddings ``(..., L, W)`` of token ids ``(..., L)``, without positions; W is the transformer's width."""
        return self.transformer.token_embedding(tokens)

    def run_words(self, words: Tensor) -> Tensor:
        """Run embedded words, some of which may be learned, through the transformer.

        Args:
            words: ``(n, L, W)`` without positions.

        Returns:
            ``(n, L, W)`` behind the last norm, for `project`. The gradient reaches the words.
        """
        tower, length = self.transformer, words.shape[1]
        mask = tower.attn_mask[:length, :length] if self._reads_end else None
        return tower.ln_final(tower.transformer(words + tower.positional_embedding[:length], attn_mask=mask))

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens ``(..., W)`` behind the last norm projected to width D."""
        projection = self.transformer.text_projection
        return projection(tokens) if isinstance(projection, nn.Module) else tokens @ projection

    def windows(self, caption: Caption) -> tuple[str, ...]:
        """Pack a caption (its sentences, one string, or None) into as few texts as fit the tower, nothing cut off."""
        sentences = (caption,) if isinstance(caption, str) else tuple(caption or ())
        found = self._packed.get(sentences)
        if found is None:
            if len(self._packed) >= _MEMO:
                self._packed.clear()
            found = self._packed[sentences] = tuple(pack_sentences(sentences, self.count_tokens, self.context_length))
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
    def precompute(self, captions: Iterable[Caption], progress: Callable[[int, int], object] | None = None) -> int:
        """Encode captions ahead, so that `encode` finds them, as far as the cache has room.

        Args:
            captions: Captions, as `windows` takes them.
            progress: Called with the number of texts encoded and of all to encode.

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
            if progress is not None:
                progress(start + len(chunk), len(new))
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
        ends = tokens.argmax(-1) if self._reads_end else torch.full((len(tokens),), self.context_length - 1)
        lengths = ((ends // step + 1) * step).clamp(max=self.context_length)
        out = weight.new_empty(len(texts), self.embed_dim)
        with torch.autocast(weight.device.type, enabled=False):
            for length in lengths.unique().tolist():
                for chunk in (lengths == length).nonzero()[:, 0].split(rows):
                    batch = torch.cat([chunk, chunk[:1].expand(rows - len(chunk))])
                    features = self._forward(tokens[batch, :length].to(weight.device))
                    out[chunk.to(weight.device)] = F.normalize(features, dim=-1)[: len(chunk)]
        return out
