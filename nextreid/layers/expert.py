"""The expert network that both branches share (Eq. 1)."""

from torch import Tensor, nn


class Expert(nn.Module):
    """A pre-normalised residual MLP: ``E(F) = F + Dropout(MLP(LN(F)))`` (NEXT, Eq. 1).

    It works token by token, so one expert serves every modality.

    Args:
        dim: Width D of the tokens.
        mlp_ratio: Hidden width as a multiple of ``dim``.
        drop: Dropout probability on the MLP's output.
    """

    def __init__(self, dim: int, mlp_ratio: float = 4.0, drop: float = 0.1) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(..., D)`` to tokens ``(..., D)``."""
        return tokens + self.drop(self.mlp(self.norm(tokens)))
