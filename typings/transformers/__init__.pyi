# The package's own file imports all of its 400 models for a type checker: a third of the time of a check.
# Whoever wants types imports from its submodules.
from typing import Any

def __getattr__(name: str) -> Any: ...
