"""Libraries that others import at once and hardly ever use: they are loaded when something of them is."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def defer(name: str) -> None:
    """Let `import name` cost nothing until an attribute of the module is asked for.

    `importlib.util.LazyLoader` does not do: Python itself asks a module for its spec when it is imported a
    second time, and that loads it. Nothing happens when the module is loaded already or not installed.

    Args:
        name: Of a module that others use as `package.module.attribute`.
    """
    if name not in sys.modules and find_spec(name.partition(".")[0]) is not None:
        sys.modules[name] = _Deferred(name)


class _Deferred(ModuleType):
    """Stands in for a module; the first attribute puts the real one in its place."""

    def __getattr__(self, attribute: str) -> Any:
        # The import system and inspect look for these of any module; __path__ when a submodule is imported.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
