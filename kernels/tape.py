"""A forward pass without Python: the operators that a function calls are noted once, and then called from C++.

A decode step of a small model calls some hundreds of operators of a few microseconds each. Python takes longer than
that to call them: to look up, to check, to split and to view. None of it depends on anything but shapes.

What can be recorded: a function without arguments whose tensors all come from operators, or are the same in every run;
what it holds may change between runs, where it lies may not. It must not look at a tensor's values (`.item()`,
`.tolist()`), nor do anything else that a run without Python should repeat.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ostinato.kernels import dispatch

Replay = Callable[[], Tensor]


def record(function: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Runs a function on the CPU, in inference mode. Returns its result, and what runs it again.

    Raises ValueError: it looks at a tensor's values, or returns a tensor that no operator has made.
    """
    dispatch.operators(torch.empty(0))
    with _Recorder() as recorder:
        result = function()
    return result, recorder.replay(result)


class _Note:
    """One call: argument and result registers of the tape."""

    def __init__(self, operator: OpOverload, arguments: list[int], reads: list[int], results: list[int]) -> None:
        self.operator, self.arguments, self.reads, self.results = operator, arguments, reads, results


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        self._tape = torch.classes.ostinato.Tape()
        self._registers: dict[int, int] = {}  # by id of a tensor
        self._seen: list[Tensor] = []  # keeps ids from being used again
        self._made: set[int] = set()  # registers that calls fill
        self._notes: list[_Note] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # of whatever type the operator returns
        result = func(*args, **(kwargs or {}))
        self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, operator: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        if not (results := list(_tensors(result))):
            raise ValueError(f"a forward pass that looks at values cannot be recorded: {operator} gave {result!r}")
        passed = [
            args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(operator._schema.arguments)
        ]
        if not operator._schema.is_mutable and self._views_what_stays(passed, results):
            return
        reads: list[int] = []
        arguments = [self._argument(value, reads) for value in passed]
        self._notes.append(_Note(operator, arguments, reads, [self._new(tensor) for tensor in results]))

    def _views_what_stays(self, passed: list[object], results: list[Tensor]) -> bool:
        """Views of tensors that are the same in every run are so too. They are held when they are first read."""
        sources = list(_tensors(passed))
        if any(self._registers.get(id(tensor)) in self._made for tensor in sources):
            return False
        places = {tensor.untyped_storage().data_ptr() for tensor in sources}
        stays = all(tensor.untyped_storage().data_ptr() in places for tensor in results)
        if stays:
            self._seen += results
        return stays

    def _argument(self, value: object, reads: list[int]) -> int:
        if isinstance(value, Tensor):
            reads.append(self._held(value))
            return reads[-1]
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
            elements = [self._argument(item, reads) for item in value]
            return int(self._tape.list(elements))
        return int(self._tape.hold(value))

    def _held(self, tensor: Tensor) -> int:
        if id(tensor) not in self._registers:
            self._seen.append(tensor)
            self._registers[id(tensor)] = self._tape.hold(tensor)
        return self._registers[id(tensor)]

    def _new(self, tensor: Tensor) -> int:
        self._seen.append(tensor)
        register: int = self._tape.hold(None)
        self._registers[id(tensor)] = register
        self._made.add(register)
        return register

    def replay(self, result: Tensor) -> Replay:
        """Writes the tape. Raises ValueError."""
        last = self._registers.get(id(result))
        if last not in self._made:
            raise ValueError("a forward pass that returns what no operator has made cannot be recorded")
        tape, released = self._tape, self._last_reads(last)
        for note, unused in zip(self._notes, released, strict=True):
            name, overload = note.operator._schema.name, note.operator._schema.overload_name
            tape.append(name, overload, note.arguments, note.results, unused)

        def run() -> Tensor:
            tensor: Tensor = tape.run(last)
            return tensor

        return run

    def _last_reads(self, kept: int) -> list[list[int]]:
        """For each call, the registers that no later one reads."""
        later, released = {kept}, []
        for note in reversed(self._notes):
            unused = {register for register in (*note.reads, *note.results) if register in self._made} - later
            later |= unused
            released.append(sorted(unused))
        return released[::-1]


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
