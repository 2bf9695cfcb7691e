"""``torch.cond`` and ``scan`` as operators of the graph that they stand in.

In ONNX a branch or a loop's body is a graph of its own, where no target fuses attention.

Rules:

1. A scan over a fixed number of steps is the steps, one after the other; when traced, up to
`MOST_STEPS`.
2. While a module is counted or traced, ``cond`` computes both branches and takes one: they are
functions of their operands, and none writes.

It must not fire on ``while_loop``, nor on a scan whose length is a dynamic dimension: how often
they run is known at run time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from crossfuse.export.capture.traceable import replaced

__all__ = ["MOST_STEPS", "both_branches", "scans_as_steps"]

MOST_STEPS = 64
"""The longest scan that is traced step by step."""


@contextmanager
def scans_as_steps() -> Iterator[None]:
    """Scans are run step by step for a while."""
    scan = import_module("torch._higher_order_ops.scan")
    compiled = scan._maybe_compile_and_run_fn

    def steps(run: Any, combine: Callable[..., Any], init: Any, xs: Sequence[Tensor]) -> Any:
        length = xs[0].shape[0]
        fixed = isinstance(length, int)
        if not fixed or (torch.compiler.is_exporting() and length > MOST_STEPS):
            return compiled(run, combine, init, xs)
        carry, made = init, []
        for i in range(length):
            carry, out = combine(*tree_leaves(carry), *(x[i] for x in xs))
            made.append(out)
        return carry, tree_map(lambda *each: torch.stack(each), made[0], *made[1:])

    with replaced(scan, "_maybe_compile_and_run_fn", steps):
        yield


@contextmanager
def both_branches() -> Iterator[None]:
    """``cond`` computes both branches for a while."""
    cond, utils = (import_module(f"torch._higher_order_ops.{name}") for name in ("cond", "utils"))
    operator = cond.cond_op

    def select(pred: Any, true: Any, false: Any, operands: Any) -> Any:
        if not isinstance(pred, Tensor):
            return operator(pred, true, false, operands)
        return tree_map(lambda a, b: torch.where(pred, a, b), true(*operands), false(*operands))

    def called(function: Callable[..., Any], args: Any, kwargs: Any = None) -> Any:
        if compiled is not None and function.__name__ != "_cond_op_wrapper":
            return compiled(function, args, kwargs)
        return function(*args)

    # Older versions call the compiler itself, which `without_fast_paths` turns off.
    compiled = getattr(utils, "_hop_compile_and_call", None)
    with replaced(cond, "cond_op", select), replaced(utils, "_hop_compile_and_call", called):
        yield
