"""Settings of the decider receive_path."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """`policy.receive_path` in the configuration."""

    dropped: Annotated[int, Meta(ge=1)] = 10
    """The backlog grows when so many packets found it full ..."""
    window_s: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """... within so long."""
    backlog_factor: Annotated[float, Meta(gt=1, le=2)] = 2.0
    backlog_helps: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Growing has helped where drops fell to this share."""
    backlog_patience: Annotated[int, Meta(ge=1, le=16)] = 4
    """So many growths that did not help in a row, and it goes back."""
    squeezes_per_s: Annotated[float, Meta(gt=0)] = 20.0
    """The budgets grow when softirq ran out of them so often ..."""
    squeeze_window_s: Annotated[float, Meta(ge=1, le=600)] = 5.0
    """... on the average of so long."""
    budget_factor: Annotated[float, Meta(gt=1, le=1.5)] = 1.5
    budget_helps: Annotated[float, Meta(gt=0, lt=1)] = 0.8
    budget_patience: Annotated[int, Meta(ge=1, le=16)] = 2
    cpu_wait: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Budgets come down when some task waited for a CPU for this share of the time ..."""
    cpu_wait_more: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """... and for so much more of it than before they grew."""
    rest_s: Annotated[float, Meta(ge=0, le=86400)] = 3600.0
    """After growing did not help, it is not tried for so long."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """Quiet for so long, a value goes halfway back to its original, and again after a quarter of it."""
