"""A role's command line: the options that every role has, and a mistake as an error that its main() answers for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from bus.config import RUN_DIR, STATE_DIR

EX_USAGE = 64
"""sysexits.h."""


class UsageError(ValueError):
    """Arguments that make no sense: says which."""


class RoleParser(argparse.ArgumentParser):
    """Knows --run-dir, --state-dir and --config. Raises UsageError where argparse would end the process with 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("--run-dir", type=Path, default=RUN_DIR)
        self.add_argument("--state-dir", type=Path, default=STATE_DIR)
        self.add_argument("--config", type=Path, default=None)

    def error(self, message: str) -> NoReturn:
        """See above."""
        raise UsageError(message)
