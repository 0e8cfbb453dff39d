"""How a kernel is launched: decided once, from sizes only, for the launch itself and for the ahead-of-time check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """constexprs: compile-time arguments by name; num_warps, num_stages: see Triton's documentation."""

    constexprs: dict[str, object]
    num_warps: int
    num_stages: int = 1

    def arguments(self) -> dict[str, object]:
        """As keyword arguments of a launch."""
        fusion = {"enable_fp_fusion": True}  # Triton's default is about to change
        return self.constexprs | {"num_warps": self.num_warps, "num_stages": self.num_stages} | fusion
