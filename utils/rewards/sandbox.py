"""Run code that a language model wrote, and decide whether it passes tests. The code is taken to be hostile.

It runs in one process of its own that has given up everything but computing, by means that the kernel offers to every
user, in containers too: a seccomp filter leaves it the system calls listed here (none starts a process or thread,
opens a socket, sends a signal or changes a file), Landlock leaves it the folders of Python's and the system's
libraries to read, and resource limits bound its memory, time and output. So nothing has to be cleaned up: it has no
children, no files, and no variable or open file of the caller's, and it ends when the caller does. Right answers never
enter that process: it is sent questions, and its answers are compared here.

The code can import the standard library alone, and has no processes, threads, sockets (so no asyncio) or files to
write. It can ask whether a path that it guesses exists. Bugs of the kernel and side channels of the processor are not
ruled out, and page tables come on top of the memory's limit, twice as much at worst.

Sources: seccomp(2), landlock(7), prctl(2), setrlimit(2), memfd_create(2).
"""

import ast
import contextlib
import functools
import inspect
import math
import os
import platform
import secrets
import select
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from io import FileIO

# What the code keeps, by the numbers on x86_64 and aarch64: to use what is open, look around, compute, wait and end.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, None), "futex": (202, 98),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "clock_nanosleep": (230, 115), "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179),
    "uname": (63, 160), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "sched_getaffinity": (204, 123),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
OPENAT = (257, 56)
# Landlock before Linux 6.2 lets whoever may read a file empty it while opening it, so the filter looks too.
OPENED_TO_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The audit architecture and the column above; by another architecture's numbers, other calls would pass.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


@dataclass(frozen=True)
class Limits:
    """What one run may use: wall clock with start-up (seconds), address space (MiB), stdout and stderr (KiB each)."""

    seconds: float = 10.0
    memory_mb: int = 512
    output_kb: int = 256


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its return code (negative for a signal), what it wrote (cut at the limit, and what is not UTF-8
    replaced), and who ended it: "itself" (where memory runs out, by an exception or a signal), "time" or "output".
    """

    returncode: int
    stdout: str
    stderr: str
    ended_by: str


def passes_tests(code: str, tests: str | list[dict[str, str]], limits: Limits = Limits()) -> bool:
    """Whether a program passes all of its tests.

    Args:
        code: the program.
        tests: Python to run after the program, such as `assert add(2, 3) == 5`; or pairs {"stdin": ..., "stdout":
            ...}, each of them a run whose output must agree but for white space at the ends of lines and of the whole.
        limits: of each run.

    An assert is a question: `add(2, 3)` is asked, the 5 stays here. So it wins nothing to end early, to catch
    AssertionError, to replace builtins or to return an object that equals everything. That holds for `==` and `is`
    before a literal of numbers, text, None, lists, tuples, sets and dicts. Any other assert is asked for its truth,
    which code can guess, or forge if it searches its own process. Each assert but `assert False` must be reached.

    Raises:
        SyntaxError: the tests are not Python.
        ValueError: they test nothing, so every program would pass.
        RuntimeError, OSError: as run_python.
    """
    if isinstance(tests, str):
        return answers_right(code, tests, limits)
    if not tests:
        raise ValueError("there are no tests")
    for pair in tests:
        outcome = run_python(code, pair["stdin"], limits)
        if (outcome.ended_by, outcome.returncode) != ("itself", 0) or tidy(outcome.stdout) != tidy(pair["stdout"]):
            return False
    return True


def run_python(code: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Run a program as `__main__`, isolated. Many threads may do so at once.

    Raises:
        RuntimeError: the new process could not give everything up, so the code did not run.
        OSError: no process could be started.
    """
    program = seccomp_program(platform.machine())
    with memory_file(code) as source, memory_file(stdin) as given, memory_file() as out, memory_file() as err:
        bounds = (math.ceil(limits.seconds) + 1, limits.memory_mb << 20, limits.output_kb << 10)
        arguments = (os.getpid(), source.fileno(), program, *bounds)
        process = subprocess.Popen(
            [sys.executable, "-sSP", "-c", f"{LAUNCHER}\nlaunch{arguments}"],
            stdin=given,
            stdout=out,
            stderr=err,
            cwd="/",
            env={"PYTHONHASHSEED": "0"},  # the order of a set must not decide a score
            pass_fds=[source.fileno()],
            start_new_session=True,  # Ctrl-C is the caller's alone
        )
        try:
            in_time = wait(process, limits.seconds)
        finally:
            process.kill()
            process.wait()
        ended_by = "time" if not in_time else "output" if process.returncode == -signal.SIGXFSZ else "itself"
        outcome = Outcome(process.returncode, text_of(out), text_of(err), ended_by)
        # Both processes share the position in the file: code that was not read did not run.
        if code and in_time and source.tell() == 0:
            raise RuntimeError(outcome.stderr.strip() or f"the launcher ended with {outcome.returncode}")
        return outcome


@functools.cache
def unsupported() -> str | None:
    """Why this machine cannot isolate code, in one sentence, or None. Found out by running a program, once."""
    try:
        outcome = run_python("import statistics; open('/proc/self/environ')")
        if "PermissionError" in outcome.stderr:
            return None
        reason = f"a program that opens /proc/self/environ ended by {outcome.ended_by}. {outcome.stderr}"
    except (RuntimeError, OSError) as error:
        reason = str(error)
    return (
        f"This machine cannot isolate code that a model wrote ({' '.join(reason.split())}): use Linux 5.13 or later "
        "on x86_64 or aarch64 with seccomp and Landlock switched on and, in a container, a seccomp profile that "
        "allows both, as a recent Docker's default does"
    )


def launch(parent: int, source: int, program: bytes, seconds: int, memory: int, output: int) -> None:
    """The new process: gives everything up, then reads the code and becomes it. Sent as text, so it stands alone."""
    import builtins
    import ctypes
    import os
    import resource
    import struct
    import sys

    libc = ctypes.CDLL(None, use_errno=True)

    def done(step: str, result: int) -> int:
        if result < 0:
            sys.exit(f"{step}: {os.strerror(ctypes.get_errno())}")
        return result

    done("prctl(PR_SET_PDEATHSIG)", libc.prctl(1, 9, 0, 0, 0))
    if os.getppid() != parent:  # it ended before that
        sys.exit("the caller has ended")
    with open("/proc/self/oom_score_adj", "w") as file:  # where the machine runs out of memory, this goes first
        file.write("1000")
    done("prctl(PR_SET_DUMPABLE)", libc.prctl(4, 0, 0, 0, 0))  # no core file
    done("prctl(PR_SET_NO_NEW_PRIVS)", libc.prctl(38, 1, 0, 0, 0))

    # Landlock's first thirteen rights are given up, and two kept here: to read a file and to list a folder.
    ruleset = done("landlock_create_ruleset", libc.syscall(444, struct.pack("Q", (1 << 13) - 1), 8, 0))
    libraries = os.path.dirname(os.path.dirname(os.__file__))
    for path in (libraries, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"):
        if os.path.isdir(path):
            folder = os.open(path, os.O_PATH)
            rule = struct.pack("=Qi", 1 << 2 | 1 << 3, folder)
            done("landlock_add_rule", libc.syscall(445, ruleset, 1, rule, 0))
            os.close(folder)
    done("landlock_restrict_self", libc.syscall(446, ruleset, 0))
    os.close(ruleset)

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # should the caller be stopped, and its clock with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    libc.signal(25, None)  # SIGXFSZ, which Python ignores: who writes beyond the limit is ended
    steps = ctypes.create_string_buffer(program)
    filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(steps))
    done("prctl(PR_SET_SECCOMP)", libc.prctl(22, 2, filtered, 0, 0))

    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # which -S leaves out
    with open(source, encoding="utf-8", errors="surrogatepass") as file:
        code = file.read()
    exec(compile(code, "code", "exec", dont_inherit=True), globals())


LAUNCHER = inspect.getsource(launch)


def seccomp_program(machine: str) -> bytes:
    """The filter as the kernel reads it, in steps of 8 bytes: calls that are not allowed do not exist (ENOSYS)."""
    if sys.platform != "linux" or machine not in MACHINES:
        raise RuntimeError(f"it runs {sys.platform} on {machine}")
    architecture, column = MACHINES[machine]
    load, if_equal, if_any_bit, end = 0x20, 0x15, 0x45, 0x06
    allow, kill, not_there = 0x7FFF0000, 0x80000000, 0x00050026
    steps = [(load, 0, 0, 4), (if_equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            steps += [(if_equal, 0, 1, number), (end, 0, 0, allow)]
    # The flags, third of openat's arguments, stand at byte 32.
    steps += [(if_equal, 0, 3, OPENAT[column]), (load, 0, 0, 32), (if_any_bit, 1, 0, OPENED_TO_CHANGE)]
    steps += [(end, 0, 0, allow), (end, 0, 0, not_there)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def wait(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process ends in time. Popen.wait would sleep up to 50 ms at a time, longer than most runs."""
    with FileIO(os.pidfd_open(process.pid)) as ended:
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))


def memory_file(text: str = "") -> FileIO:
    """A file without a name, on no disk. Output goes to one because the kernel can bound a file, but not a pipe."""
    file = FileIO(os.memfd_create("sandbox"), "r+")
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file


def text_of(file: FileIO) -> str:
    file.seek(0)
    return file.readall().decode(errors="replace")


def tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def answers_right(code: str, tests: str, limits: Limits) -> bool:
    """Whether a program answers every assert right, and comes to the end of the tests."""
    mark = f"answer_{secrets.token_hex(16)}"  # what else it prints does not start so
    tree = ast.parse(f"{tests}\nassert 0 == 0", "the tests")  # the last one: that the end is reached
    right: set[str] = set()
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    if len(asserts) == 1:
        raise ValueError("the tests assert nothing")
    for node in asserts:
        if ast.unparse(node.test) != "False":
            asked, literal = question(node.test)
            call = ast.parse(f"{mark}['answer']({mark!r}, {len(right)}, 0)", mode="eval").body
            assert isinstance(call, ast.Call)
            call.args[2] = asked
            node.test = call
            node.msg = None  # it may tell the answer
            right.add(f"{mark} {len(right)} {plain(literal)}")
    outcome = run_python(f"{code}\n{mark} = {{}}\nexec({ANSWERER!r}, {mark})\n{ast.unparse(tree)}", limits=limits)
    return {line for line in outcome.stdout.split("\n") if line.startswith(mark)} == right


def question(test: ast.expr) -> tuple[ast.expr, object]:
    """What an assert asks for, and the right answer: a value and a literal where it compares these, else a truth."""
    truth = True
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, truth = test.operand, not truth
    if truth and isinstance(test, ast.Compare) and [type(sign) for sign in test.ops] in ([ast.Eq], [ast.Is]):
        with contextlib.suppress(ValueError, TypeError):  # not a literal
            return test.left, ast.literal_eval(test.comparators[0])
    return ast.UnaryOp(ast.Not(), test), not truth


def plain(value: object) -> str:
    """A value as one line of ASCII, the same for values that are equal: 2 == 2.0, sets and dicts in any order."""
    if isinstance(value, dict):
        return f"dict({', '.join(sorted(f'{plain(key)}: {plain(item)}' for key, item in value.items()))})"
    for kind, order in ((list, list), (tuple, list), (set, sorted), (frozenset, sorted)):
        if isinstance(value, kind):
            return f"{kind.__name__.removeprefix('frozen')}({', '.join(order(map(plain, value)))})"
    return ascii(int(value) if isinstance(value, (int, float)) and value == value // 1 else value)


def answer(mark: str, number: int, value: object) -> bool:
    """Past sys.stdout, which a program may have replaced."""
    import os

    return os.write(1, f"\n{mark} {number} {plain(value)}\n".encode()) > 0


ANSWERER = f"{inspect.getsource(plain)}\n{inspect.getsource(answer)}"
