"""Identity classification loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def identity_loss(logits: Tensor, pid: Tensor, smoothing: float = 0.1, rows: Tensor | None = None) -> Tensor:
    """Cross entropy with label smoothing (Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7).

    Args:
        logits: ``(B, C)``; computed in float32 at least.
        pid: ``(B,)`` int64 class indices in [0, C).
        smoothing: Share of the target that is spread evenly over all classes, in [0, 1].
        rows: Samples that take part, bool ``(B,)``; None for all.

    Returns:
        Scalar mean over the samples that take part; zero, still attached to the graph, when there are none.

    Raises:
        ValueError: If shapes do not fit, `smoothing` is out of range, or (checked on the CPU only) a pid is not a
            class index.
    """
    if logits.ndim != 2 or pid.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (B, C) and pid (B,); got {tuple(logits.shape)} and {tuple(pid.shape)}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must lie in [0, 1]; got {smoothing}")
    classes = logits.shape[-1]
    # on an accelerator the check would wait for the device at every step
    if pid.device.type == "cpu" and pid.numel() and not (0 <= int(pid.min()) and int(pid.max()) < classes):
        raise ValueError(
            f"pid must be a class index in [0, {classes}); got values from {int(pid.min())} to {int(pid.max())}: "
            "renumber the training identities from 0"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if rows is None:
        return F.cross_entropy(logits, pid, label_smoothing=smoothing)
    each = F.cross_entropy(logits, pid, label_smoothing=smoothing, reduction="none")
    return (each * rows).sum() / rows.sum().clamp_min(1)
