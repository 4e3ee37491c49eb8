"""Libraries that others import at once and hardly ever use: they are loaded when something of them is."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def defer(name: str, *functions: str) -> None:
    """Let `import name` cost nothing until an attribute of the module is asked for.

    `importlib.util.LazyLoader` does not do: Python itself asks a module for its spec when it is imported a
    second time, and that loads it. Nothing happens when the module is loaded already or not installed.

    Args:
        name: Of a module that others use as `package.module.attribute`.
        functions: Of it, those that others take by `from name import function` on sight: they get one that
            loads the module when it is called.
    """
    if name not in sys.modules and find_spec(name.partition(".")[0]) is not None:
        sys.modules[name] = _Deferred(name, functions)


class _Deferred(ModuleType):
    """Stands in for a module; the first attribute puts the real one in its place."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        if functions:
            spec = find_spec(name)
            assert spec is not None
            self.__path__ = spec.submodule_search_locations or []  # asked for by every `from name import ...`
        for function in functions:
            setattr(self, function, self._called_later(function))

    def _called_later(self, function: str) -> Callable[..., Any]:
        return lambda *arguments, **named: self.__getattr__(function)(*arguments, **named)

    def __getattr__(self, attribute: str) -> Any:
        # The import system and inspect look for these of any module; __path__ when a submodule is imported.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
