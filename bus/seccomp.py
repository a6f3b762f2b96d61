"""System calls that this process gives up for good, for itself and its threads: seccomp(2), through libseccomp.

libseccomp (on every host that has systemd) knows the numbers of each architecture; here is only what is refused. What
is refused fails with EPERM, so that a decider that tries ends with an error that says where.
"""

from __future__ import annotations

import ctypes
import errno
import os

LIBRARY = "libseccomp.so.2"
REFUSED = errno.EPERM
AF_UNIX = 1
CLONE_NEWUSER = 0x10000000

# seccomp.h of libseccomp
ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000
CMP_NE = 1
CMP_MASKED_EQ = 7
FLTATR_CTL_TSYNC = 4
UNKNOWN = -1
"""__NR_SCMP_ERROR: this libseccomp has not heard of a system call by that name."""

NEVER = """
execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
mount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick pivot_root chroot setns unshare
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register fanotify_init open_by_handle_at
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd
add_key request_key keyctl settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname
iopl ioperm personality vhangup
"""
"""Other programs and processes, mounts and namespaces, the kernel's own machinery, the host's clock, keys and name.
io_uring is another way to open sockets and files, that no filter sees."""


class SeccompError(OSError):
    """A filter that cannot be set: says why."""


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def refuse() -> None:
    """Set the filter. Needs no privilege (it sets no_new_privs). SeccompError where the host does not have it."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise SeccompError(f"no {LIBRARY} (Debian: libseccomp2)") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_ALLOW)))
    try:
        # zmq may have begun its threads.
        _checked(library.seccomp_attr_set(context, FLTATR_CTL_TSYNC, 1), "attributes")
        for name in NEVER.split():
            _rule(library, context, name, REFUSED)
        # Sockets of the kind that has a path; no namespace of users, which would give all capabilities within.
        _rule(library, context, "socket", REFUSED, _Compare(0, CMP_NE, AF_UNIX, 0))
        _rule(library, context, "clone", REFUSED, _Compare(0, CMP_MASKED_EQ, CLONE_NEWUSER, CLONE_NEWUSER))
        # Its flags are out of a filter's sight. Without it the C library takes clone(2).
        _rule(library, context, "clone3", errno.ENOSYS)
        _checked(library.seccomp_load(context), "load")
    finally:
        library.seccomp_release(context)


def _rule(library: ctypes.CDLL, context: ctypes.c_void_p, name: str, error: int, *compare: _Compare) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number != UNKNOWN:
        action = ctypes.c_uint32(ACT_ERRNO | error)
        array = (_Compare * len(compare))(*compare)
        _checked(library.seccomp_rule_add_array(context, action, number, len(compare), array), name)


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise SeccompError(-result, f"{what}: {os.strerror(-result)}")
