"""Passes of other packages, and where they stand among crossfuse's own.

A package registers a pass by a call, `register_pass`, or by an entry point:

    [project.entry-points."crossfuse.passes"]
    my_fusion = "my_package.fusion:MyFusionPass"

An entry point names a class of passes without arguments, or a pass; its attribute ``after`` or
``before`` says where it stands. A pass that fuses attentions sets ``captures``, and writes its
nodes with ``AttentionNode.emit(…, captured="pattern")``, the ledger's word for what no call gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType

from onnx_ir.passes import PassBase

from crossfuse.core.foreign import blaming
from crossfuse.errors import InputError, unknown
from crossfuse.export.passes.base import pass_name

__all__ = ["ENTRY_POINTS", "PASSES", "PassRegistry", "Registration", "register_pass"]

ENTRY_POINTS = "crossfuse.passes"
"""The group of entry points that name passes."""


@dataclass(frozen=True)
class Registration:
    """A pass that was registered; as a context manager it is removed at the end."""

    registry: PassRegistry
    given: PassBase
    after: str | None
    before: str | None

    @property
    def name(self) -> str:
        """Of the pass."""
        return pass_name(self.given)

    def remove(self) -> None:
        """Take the pass out again; nothing happens where that was done already."""
        self.registry.unregister(self.name)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class PassRegistry:
    """Passes by name, each with its place."""

    def __init__(self) -> None:
        self._held: dict[str, Registration] = {}

    def register(
        self, given: PassBase, *, after: str | None = None, before: str | None = None
    ) -> Registration:
        """Add a pass.

        Args:
            given: an in-place pass of ``onnx_ir``, best a `FusionPass`.
            after: the name of the pass that it follows.
            before: the name of the pass that it precedes. Where neither is given, the pass's own
                attributes of these names count.

        Raises:
            InputError: it is no pass, its name is taken, or not exactly one place is given.
        """
        if not isinstance(given, PassBase):
            raise InputError(
                "what was registered is no pass",
                got=repr(given),
                expected="an instance of onnx_ir.passes.PassBase",
            )
        name = pass_name(given)
        if after is None and before is None:
            after, before = getattr(given, "after", None), getattr(given, "before", None)
        if (after is None) == (before is None):
            raise InputError(
                "a pass stands after another, or before one",
                where=name,
                got=f"after={after!r} and before={before!r}",
                expected="one of the two",
            )
        if name in self._held:
            raise InputError("a pass of this name is registered already", got=repr(name))
        self._held[name] = Registration(self, given, after, before)
        return self._held[name]

    def unregister(self, name: str) -> None:
        """Remove a pass; nothing happens where there is none of this name."""
        self._held.pop(name, None)

    def placed(self, own: Sequence[PassBase]) -> list[PassBase]:
        """A list of passes with the registered ones in their places, those of entry points too.

        Several in one place are in the order in which they were registered.

        Raises:
            InputError: a place that isn't there, a name that is taken, or an entry point that can't
                be loaded.
        """
        placed = list(own)
        waiting = [*self._held.values(), *_from_entry_points(self._held)]
        while waiting:
            names = [pass_name(each) for each in placed]
            ready = [r for r in waiting if (r.after or r.before) in names]
            if not ready:
                missing = waiting[0]
                raise unknown(
                    f"the pass {missing.name} has no place",
                    missing.after or missing.before,
                    names,
                )
            # Each goes next to its place, so the last one behind a pass is put there first.
            behind = [r for r in ready if r.after is not None]
            for registration in (*(r for r in ready if r not in behind), *reversed(behind)):
                _place(placed, registration)
                waiting.remove(registration)
        return placed


def _place(placed: list[PassBase], registration: Registration) -> None:
    names = [pass_name(each) for each in placed]
    if registration.name in names:
        raise InputError("a pass of this name is there already", got=repr(registration.name))
    if registration.before is not None:
        placed.insert(names.index(registration.before), registration.given)
        return
    assert registration.after is not None
    placed.insert(names.index(registration.after) + 1, registration.given)


def _from_entry_points(registered: Iterable[str]) -> list[Registration]:
    """Registrations of installed packages, in the order of their names; what was registered by a
    call under the same name goes before."""
    found = PassRegistry()
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        made = _loaded(entry)
        if pass_name(made) not in registered:
            found.register(made)
    return list(found._held.values())


def _loaded(entry: EntryPoint) -> PassBase:
    with blaming(
        f"the pass {entry.name} of an installed package can't be loaded:",
        where=f"{ENTRY_POINTS}: {entry.value}",
        do="Repair the package, or uninstall it",
    ):
        loaded = entry.load()
        made = loaded() if isinstance(loaded, type) else loaded
        if not isinstance(made, PassBase):
            raise TypeError(f"{entry.value} is no pass")
        return made


PASSES = PassRegistry()
"""The passes that `crossfuse.export` runs besides its own."""


def register_pass(
    given: PassBase, *, after: str | None = None, before: str | None = None
) -> Registration:
    """Add a pass to those that every export runs.

    Args:
        given: an in-place pass of ``onnx_ir``; a `FusionPass` can also say what it missed.
        after: the name of the pass that it follows, such as ``fuse_onnx_attention``.
        before: the name of the pass that it precedes.

    Returns:
        the registration: ``remove()`` undoes it, and so does the end of a ``with`` block.

    Raises:
        InputError: it is no pass, its name is taken, or not exactly one place is given.
    """
    return PASSES.register(given, after=after, before=before)
