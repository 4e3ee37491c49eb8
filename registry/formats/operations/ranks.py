"""How many singular values are kept: a fixed rank, or as many as each module needs.

The dynamic rules are those of kohya's `resize_lora.py`; s are the singular values of a module, falling:

    sv_ratio R        those above s[0] / R
    sv_fro F          as few as keep the share F of the Frobenius norm: sum(kept s^2) >= F^2 sum(s^2)
    sv_cumulative C   as few as keep the share C of their sum: sum(kept s) >= C sum(s)

At least one is kept; `rank` is then the most that a module may have (0 = no limit).
"""

from dataclasses import dataclass

import numpy as np

from registry.errors import BadInput
from registry.formats.operations.lowrank import NEGLIGIBLE, Array64, Svd

MAX_RANK = 4096


@dataclass(frozen=True)
class RankRule:
    """A fixed rank or one dynamic rule.

    Args:
        rank: 1 to 4096, or 0: the only rule, or the limit of the dynamic one.
        sv_ratio: Above 1, 0 = off.
        sv_fro: Between 0 and 1, 0 = off.
        sv_cumulative: Between 0 and 1, 0 = off.
    """

    rank: int = 0
    sv_ratio: float = 0.0
    sv_fro: float = 0.0
    sv_cumulative: float = 0.0

    def checked(self, *, needed: bool = True) -> "RankRule":
        """This rule.

        Args:
            needed: Refuse a rule that says nothing.

        Raises:
            BadInput: a number is out of range, several dynamic rules are given, or none at all.
        """
        if not 0 <= self.rank <= MAX_RANK:
            raise BadInput(f"rank {self.rank}", f"is not between 1 and {MAX_RANK}", "choose another")
        if self.sv_ratio and not (np.isfinite(self.sv_ratio) and self.sv_ratio > 1):
            raise BadInput(f"sv_ratio {self.sv_ratio:g}", "is not above 1", "try 10, or more for more detail")
        for name in ("sv_fro", "sv_cumulative"):
            share = float(getattr(self, name))
            if share and not 0 < share <= 1:
                raise BadInput(f"{name} {share:g}", "is not a share between 0 and 1", "try 0.9")
        chosen = [name for name in ("sv_ratio", "sv_fro", "sv_cumulative") if getattr(self, name)]
        if len(chosen) > 1:
            raise BadInput(" and ".join(chosen), "cannot both choose the rank", "give one of them")
        if needed and not chosen and not self.rank:
            raise BadInput("rank", "is not given", "give a rank, or sv_ratio, sv_fro or sv_cumulative")
        return self

    @property
    def dynamic(self) -> bool:
        """Whether modules may get different ranks."""
        return bool(self.sv_ratio or self.sv_fro or self.sv_cumulative)

    @property
    def enough(self) -> int:
        """How many singular values decide it; 0 = all of them."""
        return 0 if self.sv_cumulative or not self.rank else self.rank

    def choose(self, found: Svd) -> int:
        """Rank of a module with these singular values: at least 1, at most those above rounding."""
        s = found.s
        if not len(s) or s[0] == 0:
            return 1
        useful = int((s > NEGLIGIBLE * s[0]).sum())
        wanted = useful
        if self.sv_ratio:
            wanted = int((s > s[0] / self.sv_ratio).sum())
        elif self.sv_fro:
            wanted = _first(np.cumsum(np.square(s)), self.sv_fro**2 * found.energy)
        elif self.sv_cumulative:
            wanted = _first(np.cumsum(s), self.sv_cumulative * found.total)
        elif self.rank:
            wanted = self.rank
        return max(1, min(wanted, self.rank or wanted, useful))


def _first(sums: Array64, target: float) -> int:
    """How many terms reach the target, but for rounding."""
    return int(np.searchsorted(sums, target * (1 - 1e-12))) + 1
