"""Operators that take functions are seen into."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.operator_watch import OperatorWatch


class Names(OperatorWatch):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.seen.append((func.name().partition(".")[0], tuple(self.bodies)))
        return func(*args, **kwargs)


@without_fast_paths()
def test_a_loops_body_is_seen_once() -> None:
    import torch._dynamo

    def run() -> Tensor:
        start = (torch.tensor(0), torch.ones(2))
        return while_loop(lambda i, _: i < 3, lambda i, z: (i + 1, z.cos()), start)[1]

    expected = torch.ones(2).cos().cos().cos()
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), Names() as names:
        result = run()
    assert torch.equal(result, expected)
    assert names.seen.count(("aten::cos", ("while_loop",))) == 1


def test_both_branches_are_seen() -> None:
    import torch._dynamo

    with torch.compiler.set_stance("force_eager"), torch.no_grad(), Names() as names:
        result = torch.cond(
            torch.tensor(True), lambda x: x.cos(), lambda x: x.sin(), (torch.ones(2),)
        )
    assert torch.equal(result, torch.ones(2).cos())
    assert {("aten::cos", ("cond",)), ("aten::sin", ("cond",))} <= set(names.seen)
