"""Linear layers whose matrix products are oneDNN's where those are the faster: in float32 on processors of AMD.

PyTorch multiplies by MKL, which is Intel's and does not use all that a processor of another maker can do. Measured on
an EPYC at the paper's sizes: 50 to 75 GFLOP/s by MKL and 70 to 100 by oneDNN, which PyTorch has on board as well.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["Linear"]


class Linear(nn.Linear):
    """``y = x Wᵀ + b`` as :class:`torch.nn.Linear`, in its rounding or in oneDNN's.

    Example:
        >>> Linear(3, 2)(torch.rand(5, 4, 3)).shape
        torch.Size([5, 4, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if input.shape[-1:] != weight.shape[-1:] or not input.numel() or not _by_onednn(input, weight):
            return nn.functional.linear(input, weight, bias)
        rows: Tensor = _Product.apply(input.reshape(-1, input.shape[-1]), weight, bias)
        return rows.view(*input.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    """``a bᵀ + c`` of matrices (M, K) and (N, K) and of a row (N,), differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return _product(a, b, c)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needs_a, needs_b, needs_c = ctx.needs_input_grad
        return (
            _Product.apply(gradient, b.t(), None) if needs_a else None,
            _Product.apply(gradient.t(), a.t(), None) if needs_b else None,
            gradient.sum(0) if needs_c else None,
        )


def _product(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, c, "none", [], "")
    return product


def _by_onednn(*tensors: Tensor) -> bool:
    """Whether the product of these is oneDNN's."""
    return (
        all(one.dtype == torch.float32 for one in tensors)
        and _is_faster()
        and is_plain(*tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() != "medium"  # torch takes bfloat16 then, by oneDNN as well
    )


def is_plain(*tensors: Tensor) -> bool:
    """Whether these lie in a processor's memory, and nothing but autograd follows what is done to them."""
    return (
        all(type(one) in PLAIN and one.device.type == "cpu" for one in tensors)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


PLAIN = (Tensor, nn.Parameter)


@functools.cache
def _is_faster() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("vendor_id")[2][:40]
    except OSError:  # another system, which says it elsewhere
        maker = platform.processor()
    return "AuthenticAMD" in maker and hasattr(torch.ops.mkldnn, "_linear_pointwise")
