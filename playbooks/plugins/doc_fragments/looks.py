# Apache-2.0 (see LICENSE)
"""What is said of modules that only look."""

from __future__ import annotations


class ModuleDocFragment:
    """Ansible finds it by this."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
  diff_mode:
    support: none
    description: There is nothing to show.
"""
