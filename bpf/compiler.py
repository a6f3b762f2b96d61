"""bcc, used for one thing: C in, BPF instructions out. Only the loader has it, and imports it here, late.

bcc's own way of loading and attaching is left alone, see bpf.libbpf. It takes the folder of our stub headers for a
kernel tree (BCC_KERNEL_SOURCE), so no kernel headers are needed and none of another kernel can mislead it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from bpf import HERE
from bpf.libbpf import UnavailableError


class CompileError(Exception):
    """The compiler's first complaint."""


class Module:
    """Compiled sources. Keep it until what needs its maps is loaded: it holds them."""

    def __init__(self, lib: Any, compiled: Any) -> None:
        self._lib = lib
        self._compiled = compiled

    def code(self, function: str) -> bytes:
        """The instructions of one function. UnavailableError when there is none of that name."""
        start = self._lib.bpf_function_start(self._compiled.module, function.encode())
        if not start:
            raise UnavailableError(f"{function} is not in the compiled module")
        return ctypes.string_at(start, self._lib.bpf_function_size(self._compiled.module, function.encode()))


class Compiler:
    """bcc, with its talk kept to itself unless debug. UnavailableError when there is none."""

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        os.environ["BCC_KERNEL_SOURCE"] = str(HERE)
        try:
            import bcc
        except ImportError as error:
            raise UnavailableError(f"no bcc in {sys.executable}: {error}") from None
        except OSError as error:  # ctypes, where libbcc.so.0 or what it needs does not load
            raise UnavailableError(f"bcc does not load: {error}") from None
        self._bcc = bcc

    def compile(self, sources: list[str], flags: list[str]) -> Module:
        """One module of these files in HERE, one after another. Raises CompileError."""
        text = "\n".join((HERE / source).read_text() for source in sources)
        with _quiet(self._debug) as said:
            try:
                # bcc asks for debug information, a fifth of its time, and the instructions are all that is taken.
                compiled = self._bcc.BPF(text=text.encode(), cflags=[*flags, "-g0"])
            except Exception as error:  # noqa: BLE001 - bcc raises nothing more specific
                raise CompileError(_complaint(said) or str(error)) from None
        return Module(self._bcc.lib, compiled)


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[IO[str]]:
    """What C++ writes to stdout and stderr meanwhile goes into the file yielded; under debug it stays where it goes."""
    with os.fdopen(os.memfd_create("bcc"), "w+", errors="replace") as said:
        if debug:
            yield said
            return
        sys.stdout.flush()
        sys.stderr.flush()
        before = os.dup(1), os.dup(2)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            for number, kept in enumerate(before, start=1):
                os.dup2(kept, number)
                os.close(kept)


def _complaint(said: IO[str]) -> str:
    said.seek(0)
    errors = [line.partition("error:")[2].strip() for line in said if "error:" in line]
    return errors[0][:160] if errors else ""
