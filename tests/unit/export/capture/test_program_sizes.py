"""Sizes of a program: each read or computed once."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from crossfuse.export.capture.program_sizes import ProgramSizes

SIZE = torch.ops.aten.sym_size.int


class Sized(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([x, y], 0)
        return both.reshape(both.shape[0] * both.shape[1]) + x.new_zeros(both.numel())


def test_a_size_has_one_node() -> None:
    n, m = torch.export.Dim("n"), torch.export.Dim("m")
    program = torch.export.export(
        Sized(),
        (torch.randn(3, 4), torch.randn(5, 4)),
        dynamic_shapes=({0: n}, {0: m}),
        strict=False,
    )
    graph = program.graph
    sizes = ProgramSizes(graph)
    for node in list(graph.nodes):
        sizes.shared(node)
    graph.lint()
    read = [node for node in graph.nodes if node.target is SIZE]
    assert all(node.args[0].op == "placeholder" for node in read)
    known = [str(node.meta["val"]) for node in graph.nodes if node.target in (SIZE, operator.add)]
    assert len(known) == len(set(known))
