"""What a decoder process gives up before it sees the first untrusted byte. Linux only, but for the two limits.

An image may take over its decoder. What remains to it then: to compute, to read the files of Python and its libraries,
and to answer its parent with a wrong image. It cannot start a program, open a connection, change a file, read another
one (`/proc` has the environment of the daemon), or touch another process; the kernel refuses.
The environment, which often holds secrets, is left out by the parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

NEEDED = re.compile(r"PATH|LD_LIBRARY_PATH|PYTHON\w+|LANG|LC_\w+|TZ|TMPDIR|LAYERWATCH_FAILPOINTS|COVERAGE_\w+")
STORES = re.compile(r"HOME|(AWS|GOOGLE|AZURE|FSSPEC)_\w+|\w+_(proxy|PROXY)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE")
"""What the clients of object stores look up."""

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2  # linux/prctl.h, seccomp.h

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH, READ_FILE, READ_DIR = 1, 1 << 2, 1 << 3  # linux/landlock.h
OURS = str(Path(__file__).parents[3])
LIBRARIES = (OURS, "/usr", "/lib", "/lib64", "/nix/store", *os.environ.get("LD_LIBRARY_PATH", "").split(":"))
FILES = ("/etc/ld.so.cache", "/etc/localtime")

REFUSED = """
    execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, unshare 272 97, setns 308 268, mount 165 40
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_getfd 438 438
    tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424
    creat 85 -, truncate 76 45, rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37
    mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36
    mknod 133 -, mknodat 259 33, chmod 90 -, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchownat 260 54
    bpf 321 280, userfaultfd 323 282, perf_event_open 298 241, keyctl 250 219, add_key 248 217, request_key 249 218
    io_uring_setup 425 425, lchown 94 -
"""
"""System calls with their numbers on x86_64 and aarch64 (asm/unistd.h), - where there is none."""
SOCKET = (41, 198)
ABSENT = (435, 437)
"""clone3 and openat2, the same on both: their flags lie in memory, which no filter sees. Where they do not exist, the C
library takes clone and openat."""
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers above, and the machine as linux/audit.h calls it."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h: 32 bits, a constant
ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument takes 8 bytes, the lower half first."""
X32 = 0x40000000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD = 0x10000

Instruction = tuple[int, int, int, int]
"""(code, instructions to skip if true, and if false, constant)."""
EPERM: Instruction = (RETURN, 0, 0, ERRNO | errno.EPERM)
PASS: Instruction = (RETURN, 0, 0, ALLOW)


def environment(environ: Mapping[str, str], asks_servers: bool) -> dict[str, str]:
    """What a decoder process inherits: what Python and its libraries need, and no secrets.

    Args:
        asks_servers: it also asks stores for images, or a registry; clients of stores take logins from there.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if NEEDED.fullmatch(name) or (asks_servers and STORES.fullmatch(name))
    }
    # one image at a time: threads of numeric libraries would take cores from the other processes
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def confine(memory_bytes: int, asks_servers: bool, files: Iterable[Path] | None = ()) -> str:
    """Limit the memory, write no core dump with images in it, end with the parent, and give up rights.

    Args:
        asks_servers: connections are left to it.
        files: what it may read besides Python and its libraries; None is any.

    Returns:
        What this kernel refused to take away; decoding goes on without.
    """
    with contextlib.suppress(ValueError, OSError):  # the hard limit is lower than ours
        # data, not address space: libraries reserve gigabytes of addresses that they never use
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return ""
    steps: list[Callable[[], None]] = [
        # a decoder that hangs in C code does not notice the end of the parent
        lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1),
        lambda: None if files is None else _limit_reading(files),
        lambda: _filter_system_calls(platform.machine(), asks_servers),
    ]
    failed = []
    for step in steps:
        try:
            step()
        except OSError as error:
            failed.append(error.strerror or str(error))
    return "; ".join(failed)


def _limit_reading(files: Iterable[Path]) -> None:
    """Landlock: files can be read below the places that Python imports from and libraries lie in, nowhere else."""
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, struct.pack("=Q", READ_FILE | READ_DIR), 8, 0)
    try:
        folders = {path for path in (sys.prefix, sys.base_prefix, *sys.path, *LIBRARIES) if os.path.isdir(path)}
        for path in folders - {"/"}:
            _allow(ruleset, path, READ_FILE | READ_DIR)
        for path in (*FILES, *map(str, files)):
            _allow(ruleset, path, READ_FILE)
        _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # struct landlock_path_beneath_attr
            _syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, struct.pack("=Qi", access, place), 0)
        finally:
            os.close(place)


def _filter_system_calls(machine: str, asks_servers: bool) -> None:
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    column, arch = MACHINES[machine]
    program = _program(column, arch, [] if asks_servers else [SOCKET[column]])
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, and where they are
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))


def _program(column: int, arch: int, refused: Iterable[int]) -> list[Instruction]:
    numbers = [pair.split()[1 + column] for line in REFUSED.strip().splitlines() for pair in line.split(",")]
    program = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, arch),
        EPERM,  # the calls of another architecture have other numbers
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        EPERM,
    ]
    for number in (*refused, *(int(number) for number in numbers if number != "-")):
        program += [(EQUAL, 0, 1, number), EPERM]
    for number in ABSENT:
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    reading = ((257, 56)[column], 2, (ANY_BIT, 1, 0, WRITING))  # openat
    thread = ((56, 220)[column], 0, (ANY_BIT, 0, 1, CLONE_THREAD))  # clone
    own = (EQUAL, 0, 1, os.getpid())
    signals = [((62, 129)[column], 0, own), ((234, 131)[column], 0, own)]  # kill, tgkill
    limits = ((302, 261)[column], 0, (EQUAL, 0, 1, 0))  # prlimit64 of oneself
    old_open = [(2, 1, (ANY_BIT, 1, 0, WRITING))] if column == 0 else []
    for number, argument, test in (reading, thread, *signals, limits, *old_open):
        program += [(EQUAL, 0, 4, number), (LOAD, 0, 0, ARGUMENTS + 8 * argument), test, PASS, EPERM]
    return [*program, PASS]


def _prctl(option: int, *values: int | bytes) -> None:
    _call("prctl", option, *values, *[0] * (4 - len(values)))


def _syscall(number: int, *values: int | bytes) -> int:
    return _call("syscall", number, *values)


def _call(function: str, first: int, *values: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    passed = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    result: int = libc[function](ctypes.c_long(first), *passed)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}({first}): {os.strerror(number)}")
    return result
