# Apache-2.0 (see LICENSE)
"""Which of a host's recordings: of modules that read them."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible finds it by this."""

    DOCUMENTATION = r"""
options:
  hours:
    description: Recordings of so many hours up to now, by the times of their files.
    type: float
    default: 24
"""
