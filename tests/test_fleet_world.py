"""The hosts that tests of the fleet make: real ones, and nothing is left of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fleet_world import fleet

pytestmark = pytest.mark.system


def ended(pid: int) -> bool:
    """Gone, or waiting for somebody to ask how: proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def test_hosts_have_networks_files_and_processes_of_their_own_and_end_with_the_block() -> None:
    value = Path("/proc/sys/net/ipv4/tcp_fin_timeout").read_text()
    with fleet(3, booted=1) as world:
        hosts = list(world.hosts.values())
        assert [host.run("hostname; ls -d /proc/[0-9]* | wc -l").split()[0] for host in hosts[1:]] == ["h2", "h3"]
        assert hosts[0].run("cat /proc/1/comm").strip() == "systemd"
        hosts[1].run(f"touch /etc/trimtab-was-here; echo {int(value) + 1} > /proc/sys/net/ipv4/tcp_fin_timeout")
        assert hosts[1].sysctls()["ipv4/tcp_fin_timeout"] != hosts[2].sysctls()["ipv4/tcp_fin_timeout"]
        pids = [host.pid for host in hosts]
    assert Path("/proc/sys/net/ipv4/tcp_fin_timeout").read_text() == value
    assert not Path("/etc/trimtab-was-here").exists()
    assert not world.folder.exists()
    assert not [name for name in os.listdir("/run/netns") if name.startswith(world.hub.removesuffix("hub"))]
    deadline_s = time.monotonic() + 10
    while not all(map(ended, pids)):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_nothing_is_left_after_a_failure_either() -> None:
    with pytest.raises(ZeroDivisionError), fleet(1) as world:
        raise ZeroDivisionError
    assert not world.folder.exists()
    assert not Path(f"/run/netns/{world.hub}").exists()
