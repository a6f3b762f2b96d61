"""Which code decides: a digest over the sources that make a wish from events. Two tapes of one revision were decided by
the same lines."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PURE = ("bus/events.py", "bus/schema.py", "bus/numbering.py", "bus/tunables.py")
DECIDERS = "deciders"


@functools.cache
def ours() -> str:
    """trimtab's version, and twelve digits of a digest. OSError: its sources cannot be read. Kept, also by processes
    forked from this one: a role may not get to the files any more."""
    root = Path(__file__).parent.parent
    files = [root / name for name in PURE]
    files += sorted(file for file in (root / DECIDERS).glob("*.py") if file.name != "__main__.py")
    try:
        release = version("trimtab")
    except PackageNotFoundError:
        release = "tree"
    return f"{release}+{_digest(files)}"


def revision(module: str) -> str:
    """Of the decider in this module: ours, and where it is a third party's also the digest of what lies beside it."""
    found = importlib.util.find_spec(module)
    if module.partition(".")[0] == DECIDERS or not found or not found.origin:
        return ours()
    origin = Path(found.origin)
    # Beside a module without a package lies whatever else is installed.
    beside = sorted(origin.parent.glob("*.py")) if "." in module or found.submodule_search_locations else [origin]
    return f"{ours()}+{_digest(beside)}"


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
