"""What an operation did to each module, and how far its result is from what was asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.formats.internal import AdapterForm


@dataclass(frozen=True)
class ModuleResult:
    """One module: its rank, and |got - wanted| / |wanted| of its weight change in the Frobenius norm."""

    module: str
    rank: int
    error: float
    norm: float  # |wanted|


def left_out(form: AdapterForm) -> list[str]:
    """Notes on what operations on weights leave out of an adapter."""
    if not form.ignored:
        return []
    return [f"{len(form.ignored)} keys that are not understood are left out"]


@dataclass(frozen=True)
class OperationReport:
    """All modules of a result."""

    operation: str
    modules: tuple[ModuleResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> ModuleResult:
        """The module that lost most."""
        return max(self.modules, key=lambda item: item.error)

    @property
    def total_error(self) -> float:
        """Of all modules together: the root of the summed squares of what was lost, over that of all."""
        lost = sum((item.error * item.norm) ** 2 for item in self.modules)
        whole = sum(item.norm**2 for item in self.modules)
        return float(np.sqrt(lost / whole)) if whole else 0.0

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> how many modules have it."""
        return dict(sorted(Counter(item.rank for item in self.modules).items()))

    def to_dict(self, *, modules: bool = True) -> dict[str, Any]:
        """The report as JSON types; `modules=False`: without the list of modules."""
        values: dict[str, Any] = {
            "operation": self.operation,
            "count": len(self.modules),
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "total_error": self.total_error,
            "worst_error": self.worst.error if self.modules else 0.0,
            "worst_module": self.worst.module if self.modules else "",
            "notes": list(self.notes),
        }
        if modules:
            values["modules"] = [vars(item) for item in self.modules]
        return values


def common(values: Sequence[str]) -> str:
    """The one value that all have, or ""."""
    return values[0] if values and len(set(values)) == 1 else ""
