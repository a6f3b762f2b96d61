# Apache-2.0 (see LICENSE)
"""What the filters share: a reason in one line, and the order of hosts."""

from __future__ import annotations

import re

LINE_MAX = 300
# What Ansible says before the reason.
SAID_BEFORE = re.compile(
    r"(Task|Module|Action) failed: |Failed to connect to the host via ssh: "
    r'|Data could not be sent to remote host "[^"]*". Make sure this host can be reached over ssh: '
)


def line(text):
    """A reason in one line, not too long."""
    return SAID_BEFORE.sub("", " ".join(str(text).split()))[:LINE_MAX]


def by_number(name):
    """A key to sort hosts by: h2 before h10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split("([0-9]+)", name)]
