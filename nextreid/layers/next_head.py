"""NEXT behind any backbone: tokens and captions in, one embedding out (Fig. 3 without its towers)."""

import torch
from torch import Tensor, nn

from ._registry import register_layer
from .experts import TokenSets
from .mmfa import AGGREGATIONS, MMFA
from .semantic_experts import SemanticSamplingExperts
from .structure_experts import StructureExperts


@register_layer
class NEXTHead(nn.Module):
    """NEXT's experts and their aggregation for the tokens of any backbone (NEXT, Sec. 3, Eq. 1-11).

    The class tokens ``(B, M, D)`` and patch tokens ``(B, M, N, D)`` of M modalities become one embedding
    ``(B, G*M*D)``: G = E_t + S token sets, from E_t semantic experts and S sets of structure experts (Eq. 10).

    Args:
        dim: Width D of tokens, caption features and each part of the embedding.
        num_modalities: Number M of modalities.
        num_tokens: Number N of patch tokens of one modality, which is then checked; None for any. Needed by
            ``modulation_scope="map"`` and ``sampling="random"``.
        in_dim: Width of the backbone's tokens, to be projected to ``dim``; None where they have that width.
        num_semantic_experts: E_t (Fig. 4).
        num_structure_experts: E_c (Fig. 4).
        mlp_ratio: Hidden width of the experts as a multiple of D (Eq. 1).
        drop: Dropout of the experts (Eq. 1).
        semantic_routing: ``"specific"`` or ``"shared"`` (Table 4).
        sampling: ``"dynamic"``, ``"fixed"``, ``"topk"``, ``"all"`` (Table 8) or ``"random"``, their baseline.
        sampling_threshold: Threshold of ``"fixed"``.
        sampling_keep_ratio: Share that ``"topk"`` and ``"random"`` keep.
        modulation_scope: ``"position"`` or ``"map"``; see `TextModulation` (Eq. 6).
        modulation_contrast: Whether captions compare patches instead of shifting thresholds; see `TextModulation`.
        text_modulation: Build the modulation. Without captions in training its weights do not learn: False then.
        masked_tokens: Sampled-out tokens stay in the attention as ``"zero"`` tokens (Eq. 7) or ``"drop"`` out of it.
        structure_routing: ``"shared"`` or ``"specific"`` (Table 4).
        structure_granularity: Routing weights per ``"token"`` or per ``"sample"`` (Eq. 8).
        structure_output: ``"sum"`` (Eq. 9), or ``"each"`` structure expert as a token set of its own. Without any
            expert: ``"sum"`` aggregates the tokens of all modalities as one set, ``"each"`` those of each modality as
            a set of their own ("each backbone feature as an independent expert", Appendix B.1).
        aggregation: ``"attention"`` (Eq. 11), ``"mean"``, or ``"concat"`` of the class tokens, without experts.
        num_heads: Heads of the aggregation.
        ffn_ratio: Hidden width of the aggregation's feed-forward network as a multiple of D.
        mmfa_residual: Residuals in the aggregation, which Eq. 11 does not write.

    Attributes:
        num_features: Width G*M*D of the embedding.
        num_groups: Number G of token sets.
        uses_text: Whether captions change the embedding: there are semantic experts, modulated ones.

    Raises:
        ValueError: If a setting is unknown or two contradict each other.
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int = 3,
        num_tokens: int | None = None,
        in_dim: int | None = None,
        num_semantic_experts: int = 3,
        num_structure_experts: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        semantic_routing: str = "specific",
        sampling: str = "dynamic",
        sampling_threshold: float = 0.0,
        sampling_keep_ratio: float = 0.5,
        modulation_scope: str = "position",
        text_modulation: bool = True,
        masked_tokens: str = "zero",
        structure_routing: str = "shared",
        structure_granularity: str = "token",
        structure_output: str = "sum",
        aggregation: str = "attention",
        num_heads: int = 8,
        ffn_ratio: float = 4.0,
        mmfa_residual: bool = False,
        modulation_contrast: bool = False,
    ) -> None:
        super().__init__()
        if aggregation not in (*AGGREGATIONS, "concat"):
            raise ValueError(f"unknown aggregation {aggregation!r}; allowed: {', '.join((*AGGREGATIONS, 'concat'))}")
        if aggregation == "concat" and (num_semantic_experts or num_structure_experts):
            raise ValueError(
                "aggregation='concat' joins the class tokens and reads no expert: set num_semantic_experts=0 and "
                "num_structure_experts=0, or aggregate by 'attention' or 'mean'"
            )
        if num_modalities < 1:
            raise ValueError(f"num_modalities must be at least 1, got {num_modalities}")
        self.dim, self.num_modalities, self.num_tokens = dim, num_modalities, num_tokens
        self.in_dim = in_dim or dim
        self.proj: nn.Module = nn.Identity()
        if in_dim:
            # Without a bias, so that the zeros of an absent modality stay zeros.
            self.proj = nn.Linear(in_dim, dim, bias=False)
            nn.init.normal_(self.proj.weight, std=in_dim**-0.5)
        self.semantic_experts = self.structure_experts = self.mmfa = None
        if num_semantic_experts:
            self.semantic_experts = SemanticSamplingExperts(
                dim,
                num_semantic_experts,
                num_modalities=num_modalities,
                mlp_ratio=mlp_ratio,
                drop=drop,
                routing=semantic_routing,
                sampling=sampling,
                threshold=sampling_threshold,
                keep_ratio=sampling_keep_ratio,
                text=text_modulation,
                masked_tokens=masked_tokens,
                modulation_scope=modulation_scope,
                num_tokens=num_tokens,
                modulation_contrast=modulation_contrast,
            )
        if num_structure_experts:
            self.structure_experts = StructureExperts(
                dim,
                num_structure_experts,
                num_modalities=num_modalities,
                mlp_ratio=mlp_ratio,
                drop=drop,
                routing=structure_routing,
                granularity=structure_granularity,
                output=structure_output,
            )
        # Without any expert the backbone's own tokens are the one token set (Table 3, row B).
        no_expert = not (num_semantic_experts or num_structure_experts)
        self.each_backbone = no_expert and structure_output == "each" and aggregation != "concat"
        if self.structure_experts is not None:
            structure_sets = self.structure_experts.num_sets
        else:
            structure_sets = 0 if num_semantic_experts else num_modalities if self.each_backbone else 1
        if aggregation != "concat":
            self.mmfa = MMFA(
                dim, num_heads, ffn_ratio, mmfa_residual, aggregation, num_semantic_experts > 0, structure_sets > 0
            )
        self.num_semantic_experts = num_semantic_experts
        self.num_groups = num_semantic_experts + structure_sets
        self.num_features = self.num_groups * num_modalities * dim
        self.uses_text = self.semantic_experts is not None and self.semantic_experts.modulation is not None

    def forward(
        self,
        cls: Tensor | None,
        tokens: Tensor,
        text: Tensor | None = None,
        present: Tensor | None = None,
        return_parts: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Embed samples.

        Args:
            cls: Class tokens ``(B, M, in_dim)``, or any other vector for each image; None for the mean of the tokens.
            tokens: Patch tokens ``(B, M, N, in_dim)``: the rows of a feature map, or a single vector with N = 1.
            text: Caption features ``(B, M, D)``, or one for each semantic expert ``(B, E_t, M, D)``, in the space of
                the (projected) tokens; rows of zeros for images without a caption; None for none at all. Where no
                expert is modulated they change nothing.
            present: Which modalities exist, bool ``(B, M)``; None for all. Whatever an absent one's tokens hold, NaN
                included, its parts of the embedding are zero and no other part sees it.
            return_parts: Give the parts by name instead of the embedding.
            mask: What all semantic experts sample, zeros and ones ``(B, M, N)``; None leaves it to ``sampling``.

        Returns:
            The embedding ``(B, G*M*D)``, not normalised: token sets outermost, then modalities, then channels. With
            ``return_parts`` a dict of ``cls (B, M, D)``, ``tokens (B, M, N, D)`` and ``groups (B, G, M, D)``, which is
            the embedding; with semantic experts ``mask``, ``gamma``, ``beta`` ``(B, E_t, M, N)`` and
            ``sigma (B, E_t, M, 1)`` as far as they exist; with structure experts ``weights (B, M*N, E_c)``.

        Raises:
            ValueError: If a shape is not the head's.
        """
        cls, tokens = self._checked(cls, tokens, present)
        parts: dict[str, Tensor] = {"cls": cls, "tokens": tokens}
        semantic = structure = None
        if self.semantic_experts is not None:
            given = self._text(text, tokens) if self.uses_text else None
            sampled = self.semantic_experts(cls, tokens, given, present, mask)
            semantic = sampled.sets
            found = {name: getattr(sampled, name) for name in ("mask", "gamma", "beta", "sigma")}
            parts |= {name: part for name, part in found.items() if part is not None}
        if self.structure_experts is not None:
            structure, parts["weights"] = self.structure_experts(tokens, present)
        elif self.semantic_experts is None:
            structure = self._backbone_sets(tokens, present)
        parts["groups"] = cls[:, None] if self.mmfa is None else self.mmfa(cls, semantic, structure, present)
        return parts if return_parts else parts["groups"].flatten(1)

    def _backbone_sets(self, tokens: Tensor, present: Tensor | None) -> TokenSets:
        """The tower's own tokens: one set of all modalities, or one for each."""
        batch, modalities, positions = tokens.shape[:3]
        keys = None if present is None else present.repeat_interleave(positions, dim=1)  # (B, M*N)
        sets = tokens.flatten(1, 2)[:, None]  # (B, 1, M*N, D)
        if self.each_backbone:
            own = torch.eye(modalities, dtype=torch.bool, device=tokens.device).repeat_interleave(positions, dim=1)
            keys = own.expand(batch, -1, -1) if keys is None else own & keys[:, None]  # (B, M, M*N)
            sets = sets.expand(-1, modalities, -1, -1)
        return TokenSets(sets, keys)

    def _text(self, text: Tensor | None, tokens: Tensor) -> Tensor | None:
        if text is not None and text.shape[0] != tokens.shape[0]:
            raise ValueError(f"captions for {text.shape[0]} samples were given with tokens of {tokens.shape[0]}")
        return None if text is None else text.to(device=tokens.device)

    def _checked(self, cls: Tensor | None, tokens: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Class tokens and patch tokens, absent modalities zeroed, projected."""
        count, width, positions = self.num_modalities, self.in_dim, self.num_tokens
        if tokens.dim() != 4 or tokens.shape[1] != count or tokens.shape[3] != width:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, expected (B, M, N, D) with M = {count} modalities of width "
                f"{width}; build the head with num_modalities= and in_dim= for others"
            )
        if positions not in (None, tokens.shape[2]):
            raise ValueError(
                f"tokens have N = {tokens.shape[2]} positions, the head was built for num_tokens={positions}"
            )
        if cls is not None and cls.shape != (tokens.shape[0], count, width):
            raise ValueError(
                f"class tokens have shape {tuple(cls.shape)}, expected (B, M, D) = {(tokens.shape[0], count, width)}, "
                "or None for the mean of the patch tokens"
            )
        if present is not None:
            if present.shape != tokens.shape[:2] or present.dtype != torch.bool:
                expected = tuple(tokens.shape[:2])
                raise ValueError(
                    f"present is {present.dtype} {tuple(present.shape)}, expected bool (B, M) = {expected}"
                )
            absent = ~present[..., None]
            tokens = tokens.masked_fill(absent[..., None], 0.0)
            cls = None if cls is None else cls.masked_fill(absent, 0.0)
        return self.proj(tokens.mean(2) if cls is None else cls), self.proj(tokens)
