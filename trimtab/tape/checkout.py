"""Another checkout of trimtab: its own comparison of the same tapes, as its own process, read as JSON."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimtab.tape.compare_view import SCHEMA

PACKAGES = ("trimtab", "deciders")


class CheckoutError(OSError):
    """What a directory holds is no trimtab that can compare."""


def compare(code: Path, tapes: Sequence[Path], policy: Path | None, count: int | None) -> dict[str, Any]:
    """The document of `trimtab replay --policy --json` there. Without a policy only its `recorded` side means anything.
    CheckoutError where it cannot be had."""
    # A package without __init__.py would come after ours.
    if not all((code / package / "__init__.py").is_file() for package in PACKAGES):
        raise CheckoutError(f"{code}: no checkout of trimtab")
    with tempfile.NamedTemporaryFile(suffix=".json") as empty:
        Path(empty.name).write_text("{}")
        file = policy.resolve() if policy else Path(empty.name)
        argv = ["replay", *(str(tape.resolve()) for tape in tapes), "--policy", str(file), "--json"]
        argv += ["--jobs", str(count)] if count else []
        # -B: nothing is written there. The directory comes first on its path: -m puts the working directory there.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ran = subprocess.run(
            [sys.executable, "-B", "-m", "trimtab", *argv], cwd=code, env=environment, capture_output=True, text=True
        )
    try:
        document = msgspec.json.decode(ran.stdout, type=dict[str, Any])
    except msgspec.DecodeError:
        document = {}
    if document.get("schema") != SCHEMA:
        said = ran.stderr.strip().splitlines() or [f"it ended with exit code {ran.returncode}"]
        raise CheckoutError(f"{code}: its trimtab cannot compare these tapes: {said[-1]}")
    return document
