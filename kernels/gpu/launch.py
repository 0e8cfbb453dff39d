"""How a kernel is launched: decided once, from sizes only, for the launch itself and for the ahead-of-time check."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """constexprs: compile-time arguments by name; num_warps, num_stages: see Triton's documentation."""

    constexprs: dict[str, Any]  # numbers, switches, names: whatever a kernel takes
    num_warps: int
    num_stages: int = 1

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of a launch."""
        fusion = True  # Triton's default, which is about to change
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": fusion}
        return {**self.constexprs, **options}
