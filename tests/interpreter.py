"""Triton's interpreter, a third quicker."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang
HAS_SCOPES = hasattr(interpreter, "_LangPatchScope")  # as Triton 3.9 has; what is otherwise stays as it is


def look_once() -> None:
    """The interpreter replaces what `triton.language` offers when a kernel is launched. It searches all of it again
    whenever one function of the kernel calls another, and finds that there is nothing left to do.
    """
    if HAS_SCOPES:
        interpreter._patch_builtin = _replace_builtins
        interpreter._patch_lang = _replace_unless_done


@functools.cache
def _builtins(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _replace_builtins(package: Any, *rest: Any) -> None:
    for name in _builtins(package):
        if tl.core.is_builtin(member := getattr(package, name)):
            interpreter._patch_attr(package, name, member, *rest)


@functools.cache
def _languages(function: Callable[..., Any]) -> list[Any]:
    return [value for value in function.__globals__.values() if value is tl or value is tl.core]


def _replace_unless_done(function: Callable[..., Any]) -> Any:
    if all(language.static_print is print for language in _languages(function)):
        return interpreter._LangPatchScope()
    return _patch_lang(function)
