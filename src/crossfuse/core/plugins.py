"""Doors for outsiders: things by name that are built in, registered by a call, or offered by an
installed package through an entry point.

A package's code is imported when the thing that it offers is asked for by name, and at no other
time, so a package that fails can only fail those who ask for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from crossfuse.core.foreign import blaming, cause_of
from crossfuse.errors import CrossfuseError, InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Code", "Registry", "is_installed", "resolve"]

_LOG = logging.getLogger(__name__)

Thing = TypeVar("Thing")

Code = str | Callable[..., Any]
"""A function, or where it is, as ``module:name``: imported when it is first called."""


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things of one kind by name. Iteration and ``in`` see names alone and import nobody's code;
    looking one up does.

    Safe to use from several threads at once.

    Args:
        kind: what one of them is called in errors.
        group: the entry points through which packages offer them; an entry point has the thing's
            name.
        built_in: those that are always there, and stay as they are.
        accept: the thing that is kept for a name, an object given under it, and the package that
            it comes from ("" where it was registered by a call); raises :class:`InputError` where
            the object is none.
        offered: gives the entry points, instead of those of the installed packages.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, Thing],
        accept: Callable[[str, object, str], Thing],
        *,
        offered: Callable[[], Iterable[EntryPoint]] | None = None,
    ) -> None:
        self._kind = kind
        self._built_in = dict(built_in)
        self._accept = accept
        self._offered = offered or (lambda: _installed(group))
        self._registered: dict[str, tuple[object, Thing]] = {}
        self._loaded: dict[str, tuple[object, Thing]] = {}
        self._offers: Mapping[str, Sequence[EntryPoint]] | None = None
        self._lock = threading.Lock()

    def register(self, name: str, thing: object) -> None:
        """Add one; again with the same object, nothing happens.

        Raises:
            InputError: the object is none of this kind, or another one has the name.
        """
        accepted = self._accept(name, thing, "")
        known: object
        with self._lock:
            if name in self._built_in:
                known, who = self._built_in[name], "is built in"
            elif name in self._registered:
                known, who = self._registered[name][0], "is registered already"
            else:
                self._registered[name] = thing, accepted
                _LOG.debug("%s %r is registered", self._kind, name)
                return
        if not _same(known, thing):
            raise InputError(
                f"another {self._kind} of this name {who}", got=repr(name), do="Take another name"
            )

    def __getitem__(self, name: str) -> Thing:
        """The thing of that name.

        Raises:
            KeyError: there is none.
            InputError: a package offers it, and its code fails or gives something else; or two
                different things have the name.
        """
        if name in self._built_in:
            return self._built_in[name]
        offered = self._load(name, self._offers_by_name().get(name, ()))
        with self._lock:
            registered = self._registered.get(name)
        if offered is not None and registered is not None and not _same(offered[0], registered[0]):
            raise InputError(
                f"two {self._kind}s have this name: one was registered, and {self._packages(name)} "
                "offers another",
                got=repr(name),
                do="Take another name for yours, or uninstall the package",
            )
        found = offered or registered
        if found is None:
            raise KeyError(name)
        return found[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, None]:
        with self._lock:
            registered = list(self._registered)
        return dict.fromkeys([*self._built_in, *registered, *self._offers_by_name()])

    def _offers_by_name(self) -> Mapping[str, Sequence[EntryPoint]]:
        """Entry points by name, each package's once; read from the packages' metadata one time."""
        if self._offers is None:
            found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
            for point in self._offered():
                found.setdefault(point.name, {})[_package_of(point), point.value] = point
            for name in found.keys() & self._built_in.keys():
                who = ", ".join(package for package, _ in found.pop(name))
                _LOG.warning(
                    "%s %r of package %s is not used: it is built in", self._kind, name, who
                )
            self._offers = {name: tuple(points.values()) for name, points in found.items()}
        return self._offers

    def _packages(self, name: str) -> str:
        return " and ".join(f"package {_package_of(p)}" for p in self._offers_by_name()[name])

    def _load(self, name: str, points: Sequence[EntryPoint]) -> tuple[object, Thing] | None:
        """What a package offers; its code runs here, and no lock is held meanwhile."""
        if not points:
            return None
        if len(points) > 1:
            raise InputError(
                f"{self._packages(name)} both offer the {self._kind} {name!r}",
                do="Uninstall all but one",
            )
        if name not in self._loaded:
            package = _package_of(points[0])
            try:
                thing = points[0].load()
                self._loaded[name] = thing, self._accept(name, thing, package)
            except (Exception, SystemExit) as error:
                cause = str(error) if isinstance(error, CrossfuseError) else cause_of(error)
                raise InputError(
                    f"the {self._kind} {name!r} of package {package} can't be loaded: {cause}",
                    where=f"entry point {points[0].value}",
                    do="Repair the package, or uninstall it",
                ) from error
            _LOG.debug("%s %r comes from package %s", self._kind, name, package)
        return self._loaded[name]


def _installed(group: str) -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=group)


def _same(one: object, other: object) -> bool:
    return one is other or one == other


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "of an unknown name"


def resolve(code: Code, what: str) -> Callable[..., Any]:
    """The function, imported where only its place is given.

    Args:
        code: the function, or ``module:name``.
        what: whose it is, for errors.

    Raises:
        InputError: it can't be imported, or is no function.
    """
    if isinstance(code, str):
        module, _, name = code.partition(":")
        with blaming(f"{what} can't be imported:", where=code):
            code = operator.attrgetter(name)(importlib.import_module(module))
    if not callable(code):
        raise InputError(f"{what} is no function", got=repr(code))
    return code


def is_installed(module: str) -> bool:
    """There is code behind the name; type stubs alone leave a folder without any."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # of a package above it
        return False
    except ValueError:  # a module that something else put there, without a spec
        return True
    return spec is not None and spec.origin is not None
