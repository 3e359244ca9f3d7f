"""Names for built-in and plugged-in classes.

A registry knows the packages whose modules register into it and imports them when it is first
asked. Adding a class is adding a file: no list is kept by hand. Packages of other projects join
through the entry-point group ``expunge``; they are loaded only when a name is not found.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from expunge.errors import ConfigError, did_you_mean

T = TypeVar("T")

_REGISTRIES: dict[type, Registry[object]] = {}


class Registry(Generic[T]):
    """Maps names to classes that share the base class ``base``.

    Args:
        noun: what one entry is called in messages, for example ``"method"``.
        base: the base class of the entries; fields annotated with it are built from ``kind:``.
        packages: dotted names of the modules and packages that register entries.
    """

    def __init__(self, noun: str, base: type[T], packages: tuple[str, ...]) -> None:
        self.noun = noun
        self.base = base
        self._packages = packages
        self._entries: dict[str, type[T]] = {}
        self._loaded = False
        self._plugins_loaded = False
        _REGISTRIES[base] = self  # type: ignore[assignment]

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """A decorator that files a class under ``name``.

        Raises:
            ConfigError: if the name is taken by another class.
            TypeError: a field called ``kind``, which in a configuration is the name itself.
        """

        def add(cls: type[T]) -> type[T]:
            if "kind" in getattr(cls, "__dataclass_fields__", {}):
                raise TypeError(f"{cls.__name__} has a field 'kind', which names the {self.noun}. Rename it.")
            known = self._entries.get(name)
            if known is not None and _origin(known) != _origin(cls):
                raise ConfigError(f"{self.noun} '{name}' is already registered by {known.__module__}.")
            self._entries[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """The class filed under ``name``.

        Raises:
            ConfigError: if there is none; the message names the nearest one.
        """
        self._load()
        if name not in self._entries:
            self._load_plugins()
        if name not in self._entries:
            raise ConfigError(f"Unknown {self.noun} '{name}'.{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def name_of(self, entry: object) -> str:
        """The name under which an object's class (or a class) is filed."""
        self._load()
        cls = entry if inspect.isclass(entry) else type(entry)
        for name, known in self._entries.items():
            if known is cls:
                return name
        raise ConfigError(
            f"{cls.__name__} is not a registered {self.noun}. Decorate the class: @….register('its_name')."
        )

    def names(self) -> list[str]:
        """Every name, sorted, plugged-in ones included."""
        self._load()
        self._load_plugins()
        return sorted(self._entries)

    def describe(self) -> dict[str, str]:
        """Each name with the first line of its class's docstring."""
        return {name: (inspect.getdoc(self.get(name)) or "").split("\n")[0] for name in self.names()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def _load(self) -> None:
        if self._loaded:
            return
        for package in self._packages:
            module = importlib.import_module(package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{package}.{found.name}")
        self._loaded = True  # not before: a module that cannot be imported is reported every time

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        for point in entry_points(group="expunge"):
            point.load()
        self._plugins_loaded = True


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def registry_of(base: object) -> Registry[object] | None:
    """The registry whose entries have exactly this base class, if there is one."""
    try:
        return _REGISTRIES.get(base)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # an unhashable annotation
        return None
