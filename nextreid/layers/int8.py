"""Linear layers and convolutions that multiply in 8-bit integers, for inference on a CPU."""

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

# Below these rounding the input takes longer than is saved: weights of a layer, input channels of a convolution.
_SMALLEST, _FEWEST_CHANNELS = 4096, 128
_ROWS, _CACHED = 256, 2**17  # tokens of one product, values that are rounded at once: they stay in the cache
_LEAST = 1e-30  # of a largest value: its reciprocal is finite


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
    """``x`` as uint8 about 128, in its memory format, and the scale that gives it back, through which NaN stays NaN."""
    x = x.detach()
    top = torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True)).clamp_min_(_LEAST)
    whole = (x * (127 / top)).round_().to(torch.int8)  # to uint8 takes three times as long
    return whole.view(torch.uint8).bitwise_xor_(128), top / 127


def _rounded_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`_rounded` of each row of ``(R, in)``, a few at a time."""
    rows, several = rows.detach(), max(1, _CACHED // rows.shape[1])
    whole, top = torch.empty(rows.shape, dtype=torch.int8), rows.new_empty(len(rows), 1)
    buffer = rows.new_empty(min(several, len(rows)), rows.shape[1])
    for some, out, most in zip(rows.split(several), whole.split(several), top.split(several), strict=True):
        torch.maximum(some.amax(1, keepdim=True), -some.amin(1, keepdim=True), out=most).clamp_min_(_LEAST)
        out.copy_(torch.mul(some, 127 / most, out=buffer[: len(some)]).round_())
    return whole.view(torch.uint8).bitwise_xor_(128), top.div_(127)


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
        rounded, scales = _rounded_rows(x.reshape(-1, x.shape[-1]).float())  # (R, in), (R, 1)
        out = scales.new_empty(len(rounded), len(self.scale))
        for some, scale, place in zip(rounded.split(_ROWS), scales.split(_ROWS), out.split(_ROWS), strict=True):
            sums = torch.ops.onednn.qlinear_pointwise(
                some, 1.0, 128, packed, self.scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
            )
            if self.bias is None:
                torch.mul(sums, scale, out=place)
            else:
                torch.addcmul(self.bias, sums, scale, out=place)
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


class PiecewiseMlp(Mlp):
    """timm's `Mlp` on some tokens at a time, so that the wide ones between its layers stay in the cache."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        rows = x.reshape(-1, x.shape[-1])  # (R, in)
        out = torch.cat([super(PiecewiseMlp, self).forward(some) for some in rows.split(_ROWS)])
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is an `Mlp` of 8-bit layers that treats each token alone."""
        return type(module) is Mlp and type(module.fc1) is Int8Linear and type(module.norm) is nn.Identity


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
