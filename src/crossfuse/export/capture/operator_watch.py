"""Watching the operators of an eager run, those inside ``cond``, ``while_loop`` and ``scan`` too.

Rules:

1. An operator that takes functions is run, and each function is watched the first time that it is
called: a loop's body is seen once.
2. Of ``cond`` the branch not taken is watched as well, where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["OperatorWatch"]


class OperatorWatch(TorchDispatchMode):
    """A mode that sees every operator, in `watched`.

    Attributes:
        bodies: names of the operators whose functions are running, innermost last.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bodies: list[str] = []

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and take note of it."""
        return func(*args, **kwargs)

    def ran(self, operands: Sequence[Any], results: Sequence[Any]) -> None:
        """An operator that takes functions ran.

        Args:
            operands: its tensors, and what its functions returned when they were watched, among
                other things.
            results: its own.
        """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, HigherOrderOperator):
            return self.watched(func, args, kwargs or {})
        name = func.name()
        entered: dict[Any, Any] = {}
        result = func(*tree_map(lambda value: self._entering(value, name, entered), args))
        if name == "cond":
            for branch in {*args[1:3]} - entered.keys():
                self._try(self._entering(branch, name, entered), args[3])
        self.ran(tree_leaves((args, list(entered.values()))), tree_leaves(result))
        return result

    def _entering(self, value: Any, name: str, entered: dict[Any, Any]) -> Any:
        """A function that is watched once, with what it returns then; anything else as it is."""
        if isinstance(value, Tensor) or not callable(value):
            return value

        def function(*args: Any, **kwargs: Any) -> Any:
            if value in entered:
                return value(*args, **kwargs)
            entered[value] = None
            with self._body(name), self:
                entered[value] = value(*args, **kwargs)
            return entered[value]

        return function

    @contextmanager
    def _body(self, name: str) -> Iterator[None]:
        self.bodies.append(name)
        try:
            yield
        finally:
            self.bodies.pop()

    @staticmethod
    def _try(branch: Callable[..., Any], operands: Any) -> None:
        """Run a branch that was not taken, which may not be made for these inputs."""
        try:
            branch(*operands)
        except Exception:  # noqa: BLE001 -- the user's code, on inputs it doesn't say it takes
            return
