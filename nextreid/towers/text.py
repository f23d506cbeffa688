"""Captions to features: open_clip's text transformer and tokenizer, frozen."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

CONTEXT = 77
_LENGTHS = (16, 32, 48, 64, CONTEXT)
_ROWS = 32


class TextTower(nn.Module):
    """CLIP's text transformer, frozen, with a cache by content.

    Args:
        name: An open_clip model whose text side is an own transformer, such as ``ViT-B-16-quickgelu``, or a table of
            its settings (``{"width": 64, "heads": 2, "layers": 2}``).
        embed_dim: Width D of the features; None takes the named model's.
        cache_size: Features to keep, by text; the oldest go first. 0 keeps none.

    Raises:
        ValueError: If open_clip has no such model, or its text side is not a plain CLIP transformer.
    """

    def __init__(
        self, name: str | dict[str, Any] = "ViT-B-16-quickgelu", embed_dim: int | None = None, cache_size: int = 200_000
    ) -> None:
        super().__init__()
        if isinstance(name, str):
            config = open_clip.get_model_config(name)
            if config is None:
                raise ValueError(f"open_clip has no model named {name!r}; see open_clip.list_models()")
            own, quick, width = dict(config["text_cfg"]), config.get("quick_gelu", False), config["embed_dim"]
        else:
            own = dict(name)
            quick, width = own.pop("quick_gelu", True), embed_dim
        if embed_dim is not None and embed_dim != width:
            raise ValueError(
                f"the text tower {name!r} gives {width} features but embed_dim={embed_dim}; captions and patches are "
                "compared in one space, so give both towers one width"
            )
        if "hf_model_name" in own or own.get("context_length", CONTEXT) != CONTEXT:
            raise ValueError(f"the text side of {name!r} is not a CLIP transformer with a window of {CONTEXT} tokens")
        try:
            self.transformer = TextTransformer(
                output_dim=width, act_layer=QuickGELU if quick else nn.GELU, **{"context_length": CONTEXT, **own}
            )
        except TypeError as error:
            raise ValueError(f"open_clip's text transformer does not take these settings: {own} ({error})") from error
        if self.transformer.pool_type != "argmax" or self.transformer.attn_mask is None:
            raise ValueError(f"the text side of {name!r} does not read its feature at the end token as CLIP does")
        self.embed_dim: int = width
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._tokenizer: open_clip.SimpleTokenizer | None = None
        self._words: dict[str, list[int]] = {}
        self.requires_grad_(False)
        self.register_load_state_dict_post_hook(lambda module, _: module.clear_cache())

    def train(self, mode: bool = True) -> "TextTower":
        """Stay in evaluation mode: the tower is frozen."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextTower":
        self.clear_cache()
        return super()._apply(fn, recurse)

    def clear_cache(self) -> None:
        """Forget every encoded text; called when weights are loaded, moved or cast."""
        self._cache.clear()

    def tokenize(self, texts: list[str]) -> Tensor:
        """CLIP's byte-pair tokens ``(n, 77)``, start and end included, zero after the end.

        Raises:
            ValueError: If a text does not fit; pack its sentences into windows first.
        """
        tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._ids(text)
            if len(ids) > CONTEXT:
                raise ValueError(
                    f"a text of {len(ids)} tokens does not fit CLIP's window of {CONTEXT}: {text[:80]!r}..."
                )
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, the start and the end token included, uncut."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer = self._tokenizer or open_clip.SimpleTokenizer(context_length=CONTEXT)
        # No token spans white space, so that the words of a text are tokenised alone, each once. What the tokenizer
        # repairs first (broken Unicode, HTML entities, control characters) may span words and is not plain ASCII.
        if text.isascii() and text.isprintable() and "&" not in text:
            ids = []
            for word in text.split():
                if word not in self._words:
                    if len(self._words) >= max(1, self.cache_size):
                        self._words.clear()
                    self._words[word] = tokenizer.encode(word)
                ids += self._words[word]
        else:
            ids = tokenizer.encode(text)
        return [tokenizer.sot_token_id, *ids, tokenizer.eot_token_id]

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids ``(n, L)``, L up to 77, to features ``(n, D)``, not normalised.

        The transformer is causal and the feature is read at the end token, so that columns after the longest text's
        end change nothing and are not computed.
        """
        length = int(tokens.argmax(-1).max()) + 1 if tokens.numel() else 1
        return self._forward(tokens[:, :length])

    def _forward(self, tokens: Tensor) -> Tensor:
        tower, length = self.transformer, tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)
        return x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ tower.text_projection

    @torch.no_grad()
    def encode(self, windows: Sequence[Sequence[str]]) -> Tensor:
        """Encode captions given as windows of text that each fit the tower.

        A text's feature does not depend on the texts beside it: every batch that the transformer sees has one of a
        few fixed shapes, chosen by the text's own length. So a cached feature equals a fresh one.

        Args:
            windows: For each of n captions its windows, at most 77 tokens each; none for an absent caption.

        Returns:
            ``(n, D)``: the mean of a caption's unit window features, made unit again; zero for an absent caption.
        """
        weight = self.transformer.token_embedding.weight
        features = self._encode_texts(sorted({text for row in windows for text in row}))
        out = torch.zeros(len(windows), self.embed_dim, device=weight.device, dtype=weight.dtype)
        for i, row in enumerate(windows):
            if row:
                out[i] = F.normalize(torch.stack([features[text] for text in row]).mean(0), dim=-1)
        return out

    def _encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        known = {text: self._cache[text] for text in texts if text in self._cache}
        device = self.transformer.token_embedding.weight.device
        for length in _LENGTHS:
            fits = [text for text in texts if text not in known and self.count_tokens(text) <= length]
            for start in range(0, len(fits), _ROWS):
                chunk = fits[start : start + _ROWS]
                rows = chunk + chunk[:1] * (_ROWS - len(chunk))
                features = F.normalize(self._forward(self.tokenize(rows)[:, :length].to(device)), dim=-1)
                fresh = dict(zip(chunk, features.clone().unbind(), strict=False))
                known |= fresh
                if self.cache_size:
                    self._cache |= fresh
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        for text in texts:
            if text not in known:
                self.tokenize([text])  # names the text that does not fit
        return known
