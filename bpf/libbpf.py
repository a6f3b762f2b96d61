"""What the loader asks of libbpf.so.1, through ctypes: maps, programs, attachment, and the running kernel's BTF.

bcc brings libbpf along (its own package depends on it). bcc's wrappers hide errno, attach cgroup programs so that they
outlive us, and cannot load typed raw tracepoints; these are four calls (libbpf 1.0's API, which is stable).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from bpf import ANY, BITS, Field, Kind

BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_RINGBUF = 27
BPF_F_MMAPABLE = 1024
ATTACH_TYPES: dict[Kind, int] = {"tp_btf": 23, "cgroup_sysctl": 18, "fentry": 24}
"""linux/bpf.h, enum bpf_attach_type, of those that want it said when they are loaded."""
PROGRAM_TYPES: dict[Kind, int] = {"tp_btf": 26, "raw_tracepoint": 17, "cgroup_sysctl": 23, "fentry": 26}
"""linux/bpf.h, enum bpf_prog_type: TRACING, RAW_TRACEPOINT, CGROUP_SYSCTL."""

BTF_INT, BTF_PTR, BTF_ARRAY, BTF_STRUCT, BTF_UNION, BTF_ENUM, BTF_ENUM64 = 1, 2, 3, 4, 5, 6, 19
BTF_TYPEDEF = 8
BTF_FUNC = 12
BTF_ALIASES = (8, 9, 10, 11, 18)
"""typedef, volatile, const, restrict, type tag."""


class UnavailableError(Exception):
    """The kernel or this process cannot; the text is one short line for the operator."""


class Place(NamedTuple):
    """Where a member is: bytes from the structure's start, then bits within that byte (whole members: 0, 0)."""

    offset: int
    shift: int
    bits: int


class _MapOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("unused", ctypes.c_uint32 * 5),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _ProgramOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("unused", ctypes.c_uint32 * 4),
        ("attach_btf_id", ctypes.c_uint32),
        ("unused2", ctypes.c_uint32 * 2),
        ("pointers", ctypes.c_void_p * 5),  # fd_array, func_info and line_info with their counts
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    )


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UnavailableError(f"libbpf.so.1 does not load: {error}") from None
    pointer, u32, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    lib.btf__parse_raw.restype = lib.btf__type_by_id.restype = pointer
    lib.btf__name_by_offset.restype = text
    lib.btf__parse_raw.argtypes = [text]
    lib.btf__find_by_name_kind.argtypes = [pointer, text, u32]
    lib.btf__type_by_id.argtypes = [pointer, u32]
    lib.btf__name_by_offset.argtypes = [pointer, u32]
    lib.btf__resolve_size.argtypes = [pointer, u32]
    lib.btf__resolve_size.restype = ctypes.c_int64
    lib.btf__free.argtypes = [pointer]
    lib.bpf_map_create.argtypes = [ctypes.c_int, text, u32, u32, u32, ctypes.POINTER(_MapOptions)]
    lib.bpf_prog_load.argtypes = [ctypes.c_int, text, text, pointer, ctypes.c_size_t, ctypes.POINTER(_ProgramOptions)]
    lib.bpf_raw_tracepoint_open.argtypes = [text, ctypes.c_int]
    lib.bpf_link_create.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer]
    lib.libbpf_set_print.argtypes = [pointer]
    lib.libbpf_set_print(None)  # our reasons are enough
    return lib


class Libbpf:
    """The library, loaded. Every method raises UnavailableError, or OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._lib = _library()

    def map_create(self, kind: int, name: str, value_bytes: int, entries: int, flags: int = 0) -> int:
        """A descriptor of a new map; its keys are 4 bytes unless it is a ring."""
        key_bytes = 0 if kind == BPF_MAP_TYPE_RINGBUF else 4
        options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=flags)
        return _fd(self._lib.bpf_map_create(kind, name.encode(), key_bytes, value_bytes, entries, options))

    def program_load(self, kind: Kind, name: str, code: bytes, btf_id: int = 0) -> int:
        """A descriptor of a loaded program; code is its instructions. btf_id: of the tracepoint or function."""
        try:
            return self._program_load(kind, name, code, btf_id, None)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOENT):
                raise
            log = ctypes.create_string_buffer(256 * 1024)
            try:
                return self._program_load(kind, name, code, btf_id, log)
            except OSError as again:
                raise OSError(again.errno, verdict(log.value.decode(errors="replace")) or again.strerror) from None

    def _program_load(
        self, kind: Kind, name: str, code: bytes, btf_id: int, log: ctypes.Array[ctypes.c_char] | None
    ) -> int:
        options = _ProgramOptions(sz=ctypes.sizeof(_ProgramOptions), attach_btf_id=btf_id)
        options.expected_attach_type = ATTACH_TYPES.get(kind, 0)
        if log is not None:
            options.log_level, options.log_size = 1, len(log)
            options.log_buf = ctypes.cast(log, ctypes.c_char_p)
        # 15 characters and a NUL is what the kernel keeps (BPF_OBJ_NAME_LEN).
        return _fd(
            self._lib.bpf_prog_load(PROGRAM_TYPES[kind], name[:15].encode(), b"GPL", code, len(code) // 8, options)
        )

    def raw_tracepoint(self, target: str, program: int) -> int:
        """Attach to a tracepoint (an empty target: the one that the program was loaded for). Closing it detaches."""
        return _fd(self._lib.bpf_raw_tracepoint_open(target.encode() or None, program))

    def cgroup_link(self, program: int, folder: int) -> int:
        """Attach to a cgroup by a link: closing the descriptor detaches, unlike BPF_PROG_ATTACH, which outlives us."""
        return _fd(self._lib.bpf_link_create(program, folder, ATTACH_TYPES["cgroup_sysctl"], None))

    def btf(self, path: Path) -> Btf:
        """The types in a raw BTF file, such as /sys/kernel/btf/vmlinux."""
        if not path.exists():
            raise UnavailableError(f"no BTF: {path} is not there")
        handle = self._lib.btf__parse_raw(bytes(path))
        if not handle:
            raise UnavailableError(f"no BTF: {path} does not parse: {os.strerror(ctypes.get_errno())}")
        return Btf(self._lib, handle)


class Btf:
    """The kernel's own account of its structures."""

    def __init__(self, lib: ctypes.CDLL, handle: int) -> None:
        self._lib = lib
        self._handle = handle

    def close(self) -> None:
        """Give its megabytes back."""
        self._lib.btf__free(self._handle)

    def tracepoint(self, name: str) -> int:
        """The type id of a tracepoint's prototype, for tp_btf."""
        found: int = self._lib.btf__find_by_name_kind(self._handle, f"btf_trace_{name}".encode(), BTF_TYPEDEF)
        if found < 0:
            raise UnavailableError(f"no tracepoint {name} in BTF")
        return found

    def function(self, name: str) -> int:
        """The type id of a function, for fentry."""
        found: int = self._lib.btf__find_by_name_kind(self._handle, name.encode(), BTF_FUNC)
        if found < 0:
            raise UnavailableError(f"no function {name} in BTF")
        return found

    def names(self, enumeration: str) -> dict[int, str]:
        """An enumeration's names by their numbers."""
        found = self._lib.btf__find_by_name_kind(self._handle, enumeration.encode(), BTF_ENUM)
        if found < 0:
            raise UnavailableError(f"no enum {enumeration} in BTF")
        _, count, _, address = self._type(found)
        raw = struct.iter_unpack("Ii", ctypes.string_at(address, 8 * count))
        return {number: self._lib.btf__name_by_offset(self._handle, name).decode() for name, number in raw}

    def place(self, field: Field) -> Place:
        """Where a field is. UnavailableError when it is not there, or not of the size that our code reads."""
        what = f"struct {field.of}.{field.path}"
        found = self._lib.btf__find_by_name_kind(self._handle, field.of.encode(), BTF_STRUCT)
        if found < 0:
            raise UnavailableError(f"no struct {field.of} in BTF")
        at, bits = 0, 0
        for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", field.path):
            member = self._member(found, name)
            if member is None:
                raise UnavailableError(f"no {what} in BTF")
            found, at, bits = member[0], at + member[1], member[2]
            if index:
                found, at = self._element(found, at, int(index), what)
        if field.size == ANY:
            return Place(at // 8, 0, 0)
        if field.size == BITS:
            return _bits(at, bits or 8 * self._size(found), what)
        if bits or at % 8 or self._size(found) != field.size:
            raise UnavailableError(f"{what} is not {field.size} bytes here")
        return Place(at // 8, 0, 0)

    def _type(self, number: int) -> tuple[int, int, int, int]:
        """(kind, count of members, whether bit fields are marked, address behind the header), aliases resolved."""
        while True:
            address: int = self._lib.btf__type_by_id(self._handle, number)
            _, info, number = struct.unpack("III", ctypes.string_at(address, 12))
            kind = info >> 24 & 0x1F
            if kind not in BTF_ALIASES:
                return kind, info & 0xFFFF, info >> 31, address + 12

    def _member(self, number: int, wanted: str) -> tuple[int, int, int] | None:
        """(type, offset in bits, width in bits or 0) of a member, also within anonymous ones."""
        kind, count, marked, address = self._type(number)
        if kind not in (BTF_STRUCT, BTF_UNION):
            return None
        for name, member, where in struct.iter_unpack("III", ctypes.string_at(address, 12 * count)):
            at, bits = (where & 0xFFFFFF, where >> 24) if marked else (where, 0)
            if self._lib.btf__name_by_offset(self._handle, name) == wanted.encode():
                return member, at, bits
            inner = None if name else self._member(member, wanted)
            if inner:
                return inner[0], at + inner[1], inner[2]
        return None

    def _element(self, number: int, at: int, index: int, what: str) -> tuple[int, int]:
        kind, _, _, address = self._type(number)
        element, _, count = struct.unpack("III", ctypes.string_at(address, 12)) if kind == BTF_ARRAY else (0, 0, 0)
        if index >= count:
            raise UnavailableError(f"no {what} in BTF")
        return element, at + 8 * index * int(self._lib.btf__resolve_size(self._handle, element))

    def _size(self, number: int) -> int:
        """Bytes of a number, pointer or enum; 0 for what is none of these."""
        if self._type(number)[0] not in (BTF_INT, BTF_PTR, BTF_ENUM, BTF_ENUM64):
            return 0
        return int(self._lib.btf__resolve_size(self._handle, number))


def _bits(at: int, width: int, what: str) -> Place:
    first = at % 8
    if not 0 < width <= 8 - first:
        raise UnavailableError(f"{what} does not lie within one byte here")
    # BTF counts bits in memory order: from the most significant one where the machine is big-endian.
    return Place(at // 8, first if sys.byteorder == "little" else 8 - first - width, width)


def _fd(result: int) -> int:
    """libbpf 1.x returns -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def verdict(log: str) -> str:
    """The verifier's reason, the last line of its log that is not its statistics."""
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(("processed ", "verification time", "stack depth"))]
    return said[-1][:160] if said else ""
