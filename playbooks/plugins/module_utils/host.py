# Apache-2.0 (see LICENSE)
"""What the modules share: where trimtab is on a host, and what is asked of it. Runs there, under Python 3.8 and on."""

from __future__ import annotations

import json
import os
import tempfile

ROOT = "/opt/trimtab"
CONFIG_DIR = "/etc/trimtab"
RUN_DIR = "/run/trimtab"
STATE_DIR = "/var/lib/trimtab"
FACT_FILE = "/etc/ansible/facts.d/trimtab.fact"
LOG = "/var/log/trimtab.log"
OFF = STATE_DIR + "/off"
"""It was stopped because somebody wanted that: when, and who."""
MODE_FILE = CONFIG_DIR + "/conf.d/90-mode.toml"
COMPLETE = ".complete"
FITS = "fits"
"""Beside the wheels of an archive: the Python and the machine that it was made with."""
MADE = ROOT + "/made"
"""The directories outside of our own that were made for a file of ours, one in each line."""
SAID_MAX = 2000


class HostError(Exception):
    """Something on this host that is not as it must be: says what."""


class Installed:
    """The installation on this host, or none."""

    def __init__(self, module):
        self.module = module

    @property
    def current(self):
        return os.path.join(ROOT, "current")

    @property
    def program(self):
        return os.path.join(self.current, "bin", "trimtab")

    @property
    def release(self):
        """The release that `current` names; empty where there is none."""
        try:
            return os.path.basename(os.readlink(self.current))
        except OSError:
            return ""

    def releases(self):
        """Those that are there whole."""
        folder = os.path.join(ROOT, "releases")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return sorted(name for name in names if whole(os.path.join(folder, name)))

    def facts(self):
        """What trimtab says of itself (trimtab.facts); nothing where it is not installed. HostError where it cannot."""
        if not os.path.exists(self.program):
            return {}
        argv = [os.path.join(self.current, "bin", "python"), "-I", "-B", "-m", "trimtab.facts"]
        try:
            code, out, err = self.module.run_command(argv, handle_exceptions=False)
        except OSError as error:
            raise HostError(f"trimtab does not work here: {error_of(error)}") from None
        if code:
            raise HostError(f"trimtab does not work here: {last(out + err)}")
        return json.loads(out)

    def run(self, *words):
        """trimtab's (exit code, output in one string)."""
        code, out, err = self.module.run_command([self.program, *words])
        return code, (out + err).strip()


def whole(release):
    """Its installation came to its end, and its Python is there still."""
    return os.path.exists(os.path.join(release, COMPLETE)) and os.path.exists(os.path.join(release, "bin", "python"))


def last(text):
    """The last that a program said, in one line, not too long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ("; ".join(lines[-3:]) or "it said nothing")[-SAID_MAX:]


def python_version(module, python):
    """As "3.11"; empty where it does not run."""
    argv = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        code, out, _ = module.run_command(argv, handle_exceptions=False)
    except OSError:
        return ""
    return "" if code else out.strip()


def service_manager():
    """systemd(1) is running: sd_booted(3). Else trimtab's own supervisor keeps its roles."""
    return "systemd" if os.path.isdir("/run/systemd/system") else "supervisor"


def read(path, start=0):
    """A file's text, from a byte on; empty where it is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def make_folder(folder):
    """Make a directory and those above it, and remember which: their removal takes them away again."""
    if os.path.isdir(folder):
        return
    make_folder(os.path.dirname(folder))
    os.mkdir(folder, 0o755)
    if not folder.startswith((ROOT, CONFIG_DIR)):
        make_folder(ROOT)
        with open(MADE, "a", encoding="utf-8") as file:
            file.write(folder + "\n")


def write(path, text, mode=0o644):
    """Replace a file at once, so that an interruption leaves the old one or the new one."""
    folder = os.path.dirname(path)
    make_folder(folder)
    handle, fresh = tempfile.mkstemp(prefix=".trimtab-", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, mode)
        os.rename(fresh, path)
    except OSError:
        os.unlink(fresh)
        raise


def difference(before, after, header):
    """A diff as Ansible shows it."""
    return {"before": before, "after": after, "before_header": header, "after_header": header}


def error_of(error):
    """An OSError in one line, with the file."""
    return f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else str(error)
