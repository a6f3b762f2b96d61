"""Where the kernel has what the probes read, as flags for the compiler. For the loader."""

from __future__ import annotations

from bpf import BITS, Field, Names, Probe
from bpf.libbpf import Btf, UnavailableError


def places(probe: Probe, btf: Btf) -> tuple[list[str], list[str], dict[str, int]]:
    """Flags that say where the members are, which optional ones are missing, and for people where the others are."""
    flags: list[str] = []
    missing: list[str] = []
    offsets: dict[str, int] = {}
    for field in probe.fields:
        try:
            place = btf.place(field)
        except UnavailableError as error:
            if field.essential:
                raise
            missing.append(f"{error}")
            flags += _macros(field, -1, 0, 8)
        else:
            flags += _macros(field, *place)
            offsets[f"{field.of}.{field.path}"] = place.offset
    return flags, missing, offsets


def _macros(field: Field, offset: int, shift: int, bits: int) -> list[str]:
    found = [f"-DOFF_{field.macro}={offset}"]
    return [*found, f"-DSHIFT_{field.macro}={shift}", f"-DBITS_{field.macro}={bits}"] if field.size == BITS else found


def constants(names: Names, found: dict[int, str]) -> list[str]:
    """Flags with the numbers of those that the C code goes by. UnavailableError without one of them."""
    numbers = {name: number for number, name in found.items()}
    for name in names.constants:
        if name not in numbers:
            raise UnavailableError(f"no {names.prefix}{name} in BTF")
    return [f"-DNAMED_{name}={numbers[name]}" for name in names.constants]
