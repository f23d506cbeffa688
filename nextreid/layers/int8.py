"""Linear layers and convolutions that multiply in 8-bit integers, for inference on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

# Below these rounding the input takes longer than is saved: weights of a layer, input channels of a convolution.
_SMALLEST, _FEWEST_CHANNELS = 4096, 128


class Int8Layer(nn.Module):
    """What the 8-bit layers share: weights of one scale a row, inputs of one scale a token or an image.

    Each row of the weights is rounded to -127 ... 127 once. Each token, or each image of a convolution, is divided by
    its largest value and rounded likewise when it comes, so that no vector depends on its batch; sums are exact.

    Attributes:
        int8_weight: ``(out, ...)`` int8.
        scale: ``(out,)`` float32.
        bias: ``(out,)`` float32 or None.
    """

    int8_weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        shape = (-1, *[1] * (weight.dim() - 1))
        self.register_buffer("int8_weight", (weight / scale.view(shape)).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self._packed: tuple[Tensor, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The rounded weights as float32, for code that multiplies by them itself."""
        return self.int8_weight.float() * self.scale.view(-1, *[1] * (self.int8_weight.dim() - 1))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # the kernel's own layout, which neither copies nor pickles

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Layer":
        self._packed = None
        return super()._apply(fn, recurse)


def _rounded(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``x`` as uint8 about 128, and the scale that gives it back; NaN stays NaN through the scale."""
    scale = x.abs().amax(dims, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (x / scale).add_(128.5).to(torch.uint8), scale


class Int8Linear(Int8Layer):
    """An `nn.Linear` in 8 bits: ``(..., in)`` to ``(..., out)``, float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if self._packed is None:
            self._packed = (
                torch.ops.onednn.qlinear_prepack(self.int8_weight, None),
                torch.zeros(len(self.scale), dtype=torch.int32),
            )
        packed, zero = self._packed
        rows = x.reshape(-1, x.shape[-1]).float()  # (R, in)
        rounded, scale = _rounded(rows, (1,))
        out = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, packed, self.scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out = out * scale if self.bias is None else torch.addcmul(self.bias, out, scale)
        return out.view(*x.shape[:-1], len(self.scale)).to(x.dtype)


class Int8Conv2d(Int8Layer):
    """An `nn.Conv2d` in 8 bits: ``(B, in, H, W)`` to ``(B, out, H', W')``, float32 on a CPU."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self._where = (list(layer.stride), list(map(int, layer.padding)), list(layer.dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        stride, padding, dilation = self._where
        if self._packed is None:
            self._packed = (
                torch.ops.onednn.qconv_prepack(
                    self.int8_weight, self.scale, 1.0, 128, stride, padding, dilation, 1, None
                ),
                torch.zeros(len(self.scale), dtype=torch.int32),
            )
        packed, zero = self._packed
        rounded, scale = _rounded(x.float(), (1, 2, 3))
        out = torch.ops.onednn.qconv_pointwise(
            rounded.contiguous(memory_format=torch.channels_last),
            1.0,
            128,
            packed,
            self.scale,
            zero,
            None,
            stride,
            padding,
            dilation,
            1,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        out = out * scale if self.bias is None else torch.addcmul(self.bias[:, None, None], out, scale)
        return out.to(x.dtype)


def int8_layer(module: nn.Module) -> Int8Layer | None:
    """The 8-bit form of a layer, or None where it has none or is too small to gain by it."""
    if type(module) is nn.Linear and module.weight.numel() >= _SMALLEST:
        return Int8Linear(module)
    if (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.in_channels >= _FEWEST_CHANNELS
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.numel() >= _SMALLEST
    ):
        return Int8Conv2d(module)
    return None
