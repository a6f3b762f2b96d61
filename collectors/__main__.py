"""A collector: `python -I -m collectors bpf|proc|netlink --run-dir DIR --state-dir DIR --config FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bus import config, link, roles
from bus.arguments import EX_USAGE, RoleParser, UsageError
from bus.netns import cookie_here
from bus.stop import stop_signals
from collectors.loop import Loop
from collectors.source import Source

KINDS = ("bpf", "proc", "netlink")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one collector until SIGTERM. Returns the exit code: 0 stopped in order, 1 cannot run, 64 usage."""
    try:
        options = _arguments(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"collectors: {error}", file=sys.stderr)
        return EX_USAGE
    role = f"collector-{options.kind}"
    try:
        _run(role, options)
    except (OSError, config.ConfigError) as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = RoleParser("collectors", "Publishes what one source in the kernel says.")
    parser.add_argument("kind", choices=KINDS)
    return parser.parse_args(argv)


def _run(role: str, options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    with stop_signals() as stop:
        publisher = link.Publisher(roles.events_path(options.run_dir, role), role)
        try:
            source = _source(options.kind, options.run_dir, settings)
            try:
                Loop(role, source, publisher, stop).run()
            finally:
                source.close()
        finally:
            publisher.close()


def _source(kind: str, run_dir: Path, settings: config.Config) -> Source:
    # Each process imports only its own source's module: they differ by megabytes.
    if kind == "bpf":
        from collectors.bpf import BpfSource

        return BpfSource(run_dir, settings.netns)
    if kind == "proc":
        from collectors.proc import ProcSource

        return ProcSource()
    from collectors.flows import FlowsSource
    from collectors.listeners import ListenersSource
    from collectors.netlink import NetlinkSource
    from collectors.several import Several
    from collectors.trials import TrialsSource

    # Beside each other because both look into other namespaces, which collector-proc must not be able to.
    namespaces = NetlinkSource(settings)
    return Several(
        namespaces,
        TrialsSource(run_dir, cookie_here(), namespaces.census),
        ListenersSource(run_dir, namespaces.census),
        FlowsSource(run_dir, namespaces.census),
    )


if __name__ == "__main__":
    sys.exit(main())
