"""The rules agree with PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from crossfuse.core.flops import attention_flops, convolution_flops, product_flops


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def test_products() -> None:
    a, b = torch.ones(3, 4, 5), torch.ones(3, 5, 7)
    assert product_flops((3, 4, 7), 5) == counted(lambda: a @ b)
    assert product_flops((4, 7), 5) == counted(lambda: torch.ones(4, 5) @ torch.ones(5, 7))


def test_convolutions() -> None:
    image, kernel = torch.ones(2, 6, 10, 12), torch.ones(8, 6, 3, 3)
    out = F.conv2d(image, kernel, stride=2)
    assert convolution_flops(2 * out[0, 0].numel(), kernel.shape) == counted(
        lambda: F.conv2d(image, kernel, stride=2)
    )
    grown = torch.ones(6, 4, 3, 3)
    assert convolution_flops(2 * 10 * 12, grown.shape) == counted(
        lambda: F.conv_transpose2d(image, grown)
    )


def test_attentions() -> None:
    heads = {"q": (2, 4, 7, 8), "k": (2, 4, 11, 8), "v": (2, 4, 11, 8)}
    q, k, v = (torch.ones(shape) for shape in heads.values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    assert attention_flops(2 * 7, 11, 4 * 8, 4 * 8) == expected
