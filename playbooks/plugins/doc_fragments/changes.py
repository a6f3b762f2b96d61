# Apache-2.0 (see LICENSE)
"""What is said of modules that change a host."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible finds it by this."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows each thing before and after.
notes:
  - Needs root on the host.
"""
