"""The sandbox: right and wrong programs, and every way out that hostile ones try.

What hostile code does here is bounded by itself (one fork, signal 0): a broken sandbox fails a test and no more.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from utils.rewards import sandbox
from utils.rewards.sandbox import Limits, passes_tests, run_python, unsupported

WHY = unsupported() or ""
# A probe that ran and was not isolated is a broken sandbox, and no machine's lack.
pytestmark = pytest.mark.skipif(bool(WHY) and "ended by" not in WHY, reason=WHY)

SHORT = Limits(seconds=0.5)


def launched(parent=None):
    """The processes on this machine that a parent's run_python has started, this process by default."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if f"\nlaunch({parent or os.getpid()},".encode() in command:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert launched() == []
    assert set(os.listdir("/proc/self/fd")) == before


# Programs against tests


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("def add(a, b):\n    return a + b", True),
        ("def add(a, b):\n    return a - b", False),
        ("def add(a, b):\n    print('adding', end='', flush=True)\n    return a + b", True),
        ("add = lambda a, b: a + b\nif __name__ == '__main__':\n    assert add(1, 1) == 2", True),
        ("def add(a, b):\n    return str(a + b)", False),
        ("def add(a, b):\n    return None", False),
        ("def plus(a, b):\n    return a + b", False),
        ("def add(a, b) return a + b", False),
        ("", False),
        ("def add(a, b):\n    return a + b\nraise ValueError", False),
        ("def add(a, b):\n    return a + b\nimport sys, io\nsys.stdout = io.StringIO()", True),
        ("def add(a, b):\n    while True: pass", False),
        ("def add(a, b):\n    return a + b\ndef plain(): pass\ndef answer(): pass", True),
    ],
)
def test_asserts(code, passes):
    limits = Limits() if passes else SHORT
    assert passes_tests(code, "assert add(2, 3) == 5\nassert add(-1, 1) == 0", limits) is passes


@pytest.mark.parametrize(
    ("returned", "expected", "passes"),
    [
        ("2.0", "2", True), ("True", "1", True), ("-0.0", "0", True), ("0.1 + 0.2", "0.3", False),
        ("10**400", "1", False), ("float('nan')", "0", False), ("float('inf')", "1e999", True),
        ("1e300", "1e300", True), ("1 + 2j", "1 + 2j", True),
        ("'4'", "4", False), ("'a\\nb\\u2028é\\ud800'", "'a\\nb\\u2028é\\ud800'", True), ("b'x'", "b'x'", True),
        ("[1, 2]", "(1, 2)", False), ("[1, 2]", "[2, 1]", False), ("[1, [2]]", "[1, [2.0]]", True),
        ("{0, 8}", "{8, 0}", True), ("frozenset([16, 8])", "{8, 16}", True), ("{}", "set()", False),
        ("{1: 2, 'a': [3]}", "{'a': [3], 1.0: 2}", True), ("Counter('aab')", "{'a': 2, 'b': 1}", True),
        ("namedtuple('Point', 'x y')(1, 2)", "(1, 2)", True), ("None", "None", True), ("None", "False", False),
    ],
)  # fmt: skip
def test_a_value_is_compared_as_python_does(returned, expected, passes):
    assert eval(f"{returned} == {expected}", {"Counter": Counter, "namedtuple": namedtuple}) is passes
    code = f"from collections import Counter, namedtuple\ndef f():\n    return {returned}"
    assert passes_tests(code, f"assert f() == {expected}") is passes


@pytest.mark.parametrize(
    "tests",
    [
        "assert not f(1)\nassert f(2)",
        "assert f(2) is True and not f(3)",
        "assert f(1) is False, f'not {f(1)}'",
        "assert f(2) == f(4) == True",
        "for i in range(0, 20, 2):\n    assert f(i)",
        "def check(g):\n    for i in (1, 2):\n        assert g(i) == (i == 2)\n    assert g(2) == True\ncheck(f)",
        "try:\n    f(None)\n    assert False\nexcept TypeError as error:\n    assert 'None' in str(error)",
        "import math\nassert math.isclose(f(2), 1.0)",
        "# is it even?\nassert abs(f(2) - 1) < 1e-6",
    ],
)
def test_forms_of_asserts(tests):
    assert passes_tests("def f(x):\n    return x % 2 == 0", tests)
    assert not passes_tests("def f(x):\n    return x is None or x % 2 == 1", tests)
    assert not passes_tests("def f(x):\n    return x % 2 == 0 if x else 1 / 0\nf(0)", tests)


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("print(int(input()) * 2)", True),
        ("import sys\nfor line in sys.stdin: print(int(line) * 2, end='  \\n\\n')", True),
        ("print(int(open(0).read()) * 2); exit()", True),
        ("import os; os.write(1, b'%d' % (int(os.read(0, 100)) * 2))", True),
        ("print(8)", False),
        ("print(int(input()) * 2, 1)", False),
        ("print(int(input()) * 2); exit(1)", False),
        ("print(int(input()) * 2); 1 / 0", False),
        ("print(int(input()) * 2, flush=True)\nwhile True: pass", False),
        ("", False),
    ],
)
def test_pairs(code, passes):
    pairs = [{"stdin": "4\n", "stdout": "8\n"}, {"stdin": "-5", "stdout": "-10"}]
    assert passes_tests(code, pairs, Limits() if passes else SHORT) is passes


def test_leading_space_counts():
    assert passes_tests("print('  *\\n ***  ')", [{"stdin": "", "stdout": "  *\n ***"}])
    assert not passes_tests("print('*\\n***')", [{"stdin": "", "stdout": "  *\n ***"}])


@pytest.mark.parametrize("tests", ["", [], "x = 1", "def check(f):\n    pass", "# assert f(1) == 2"])
def test_tests_that_test_nothing_are_an_error(tests):
    with pytest.raises(ValueError, match=r"no tests|nothing"):
        passes_tests("f = 1", tests)


@pytest.mark.parametrize("tests", ["assert f(", "if True:", "assert f(1) == 2 \\", "'''"])
def test_tests_that_are_not_python_are_an_error(tests):
    with pytest.raises(SyntaxError):
        passes_tests("f = 1", tests)


SEARCH = """
import gc, re, sys
def f(x):
    frame, texts = sys._getframe(), [repr(sys.orig_argv)]
    while frame:
        texts += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    texts += [repr(thing) for thing in gc.get_objects() if type(thing) in (tuple, list, dict)]
    found = re.search(rf"f\\({x}\\) (?:==|should be|is) (\\d+)", "".join(texts))
    return int(found[1]) if found else None
"""
TRICKS = {
    "leave": "import sys; sys.exit(0)",
    "leave at once": "import os; os._exit(0)",
    "raise SystemExit": "raise SystemExit(0)",
    "leave when asked": "import os\ndef f(x): os._exit(0)",
    "print at exit": "import atexit; atexit.register(print, 'passed'); exit()",
    "print what a harness may look for": "print('OK\\npassed\\nanswer_ 0 13579\\n1 passed in 0.01s'); exit()",
    "equal everything": "class Any:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
    "    def __hash__(self): return 0\ndef f(x): return Any()",
    "look like the answer": "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(0)",
    "name a class so": "class Any:\n    def __repr__(self): return '0'\n    __class__ = int\ndef f(x): return Any()",
    "other builtins": "import builtins\nfor name in ('exec', 'isinstance', 'ascii', 'sorted', 'map', 'int'):\n"
    "    setattr(builtins, name, lambda *a, **k: True)\ndef f(x): return 0",
    "another exec": "exec = lambda *a: a[1].update(answer=lambda *a: True)\ndef f(x): return 0",
    "other writing": "import os\nos.write = lambda *a: 1\ndef f(x): return 0",
    "no AssertionError": "import builtins, sys\nbuiltins.AssertionError = KeyError\nsys.excepthook = print\n"
    "def f(x): return 0",
    "swallow the tests": "def f(x): return 0\nimport sys\nif sys.exit() or '''",
    "a last line that goes on": "def f(x): return 0\n\\",
    "trace the tests": "import sys\ndef f(x): return 0\ndef trace(frame, event, arg):\n"
    "    frame.f_globals['f'] = lambda x: True\n    return trace\n"
    "sys.settrace(trace)\nsys._getframe().f_trace = trace",
    "search its own process": SEARCH,
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_win_nothing(trick):
    tests = (
        "assert f(3) == 13579, 'f(3) should be 13579'\nassert f(0) == 24680, 'f(0) should be 24680'  # f(0) is 24680"
    )
    assert not passes_tests(TRICKS[trick], tests)
    assert passes_tests("def f(x):\n    return 13579 if x else 24680", tests)


@pytest.mark.parametrize("later", ["False", "os._exit(0)", "sys.exit(0)", "1 / 0"])
def test_answers_are_right_to_the_end(later):
    """The one assert is answered right at first."""
    code = f"import os, sys\ndef f(x):\n    return True if x < 2 else {later}"
    assert not passes_tests(code, "for i in range(4):\n    assert f(i) is True")
    assert passes_tests(code, "for i in range(2):\n    assert f(i) is True")


# Programs of any form


def test_a_program_is_main():
    code = """
import dataclasses, pickle, sys, typing
@dataclasses.dataclass
class Point:
    x: "int"
assert typing.get_type_hints(Point) == {"x": int}
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
assert __name__ == "__main__" and sys.modules["__main__"].Point is Point
os = sys.modules["os"]
print(sorted(os.environ), os.getcwd(), sys.stdin.encoding, sys.stdout.encoding, hash("fixed"))
"""
    outcome = run_python(code)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == run_python(code).stdout, "two runs of one program differ"
    assert outcome.stdout.startswith("['LC_CTYPE', 'PYTHONHASHSEED'] / utf-8 utf-8 ")


@pytest.mark.parametrize(
    ("code", "error"),
    [("def", "SyntaxError"), ("print(1)\0", "null bytes"), ("print('\ud800')", "surrogates"), ("(" * 10000, "Error"),
     ("x = 1\n y = 2", "IndentationError"), ("# coding: nonsense\n1 / 0", "ZeroDivisionError"), ("\ufeffx", "Error")],
)  # fmt: skip
def test_malformed_code_is_an_error_of_its_own(code, error):
    outcome = run_python(code)
    assert (outcome.returncode, outcome.stdout, outcome.ended_by) == (1, "", "itself")
    assert error in outcome.stderr


def test_unicode_and_size():
    assert run_python("print('é ٤ 😀', input())", "日本").stdout == "é ٤ 😀 日本\n"
    assert run_python("print(ascii(input()))", "\ud800 \0").stdout == "'\\udced\\udca0\\udc80 \\x00'\n"
    assert run_python("print(" + "1+" * 100 + "1)\n" + "# more\n" * 150_000 + "print(2)").stdout == "101\n2\n"
    assert run_python("x = '''" + "x" * 1_000_000 + "'''\nprint(len(x), len(input()))", "y" * 10**7).stdout == (
        "1000000 10000000\n"
    )
    assert run_python("import sys; sys.stdout.buffer.write(b'\\xff\\xfe ok')").stdout == "\ufffd\ufffd ok"


def test_the_standard_library_is_there_and_nothing_else():
    code = "import ctypes, decimal, hashlib, json, random, re, sqlite3, ssl, statistics, unittest, zoneinfo; print(1)"
    assert run_python(code).stdout == "1\n"
    assert "No module named 'pytest'" in run_python("import pytest").stderr
    assert "No module named 'utils'" in run_python("import utils").stderr


@pytest.mark.parametrize(
    "code",
    [
        "def f(): f()\nf()",
        "import sys; sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**5): x = [x]\nrepr(x)",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
    ],
)
def test_a_crash_is_its_own(code):
    outcome = run_python(code)
    assert outcome.returncode != 0
    assert outcome.ended_by == "itself"


# Limits


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import time; time.sleep(1000)",
        "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
        "import os\nfor handle in range(10):\n    try: os.close(handle)\n    except OSError: pass\nwhile True: pass",
        "9**9**9",
        "import re; re.match('(a+)+$', 'a' * 100 + 'b')",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nwhile True:\n    try: f()\n    except: pass",
        "import atexit, time; atexit.register(time.sleep, 1000)",
    ],
)
def test_time(code):
    started = time.monotonic()
    outcome = run_python(code, limits=SHORT)
    assert (outcome.returncode, outcome.ended_by) == (-signal.SIGKILL, "time")
    assert time.monotonic() - started < 3


def test_time_without_the_callers_clock(monkeypatch):
    """A caller that is stopped watches no clock; the kernel's goes on."""
    monkeypatch.setattr(sandbox, "wait", lambda process, seconds: process.wait() is not None)
    assert run_python("while True: pass", limits=SHORT).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10 << 30)\nprint('free')",
        "x = []\nwhile len(x) < 2000: x.append(bytearray(1 << 20))\nprint('free')",
        "x = ['x']\nwhile len(x) < 1 << 28: x += x\nprint('free')",
        "import mmap; mmap.mmap(-1, 1 << 30)\nprint('free')",
        "x = 'x' * (600 << 20)\nprint('free')",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); bytearray(1 << 30); print('free')",
    ],
)
def test_memory(code):
    outcome = run_python(code)
    assert (outcome.stdout, outcome.ended_by) == ("", "itself")
    assert "Error" in outcome.stderr


def test_memory_below_the_limit():
    assert run_python("print(len(bytearray(300 << 20)))").returncode == 0
    assert run_python("print(len(bytearray(300 << 20)))", limits=Limits(memory_mb=200)).returncode == 1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nwhile True: print('x' * 1000, file=sys.{})",
        "import sys\nwhile True:\n    try: sys.{}.buffer.write(b'x' * (1 << 20))\n    except Exception: pass",
        "import sys\nsys.{}.write('x' * (100 << 20))",
    ],
)
def test_output_without_end(stream, code):
    outcome = run_python(code.format(stream), limits=Limits(output_kb=64))
    assert (outcome.returncode, outcome.ended_by) == (-signal.SIGXFSZ, "output")
    assert len(outcome.stdout + outcome.stderr) == 64 << 10


def test_output_without_end_of_one_who_ignores_the_signal():
    code = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
while True:
    try:
        os.write(1, b"x" * 999)
    except OSError:
        pass
"""
    outcome = run_python(code, limits=SHORT)
    assert outcome.ended_by == "time"
    assert len(outcome.stdout) == 256 << 10


def test_many_open_files():
    code = "import os\nwhile True: print(os.open(os.__file__, os.O_RDONLY), flush=True)"
    outcome = run_python(code)
    assert "Too many open files" in outcome.stderr
    assert len(outcome.stdout.split()) < 64


# Ways out. Each prints `free` where it finds one.

ESCAPES = {
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "vfork": "import ctypes\nif ctypes.CDLL(None).vfork() < 0: raise OSError",
    "run a program": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "become a program": "import os; os.execv('/bin/echo', ['echo', 'free'])",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "system": "import os\nif os.system('true'): raise OSError",
    "multiprocessing": "import multiprocessing; multiprocessing.get_context('fork').Process(target=print).start()",
    "a thread": "import threading; threading.Thread(target=print).start()",
    "threads without end": "import threading\nfor _ in range(50): threading.Thread(target=print).start()",
    "namespaces": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError",
    "signal the parent": "import os; os.kill(os.getppid(), 0)",
    "signal everyone": "import os; os.kill(-1, 0)",
    "signal the group": "import os; os.killpg(1, 0)",
    "signal by a pidfd": "import os; os.pidfd_open(os.getppid())",
    "signal by ownership": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "trace the parent": "import ctypes, os\nif ctypes.CDLL(None).ptrace(0x4206, os.getppid(), 0, 0): raise OSError",
    "outlive the parent": "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0): raise OSError",
    "set a limit": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))",
    "priority": "import os; os.nice(1)",
    "a socket": "import socket; socket.socket()",
    "a local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "import socket; socket.socketpair()",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "a pipe": "import os; os.pipe()",
    "memory on a file": "import os; os.memfd_create('x')",
    "the caller's variables": "import os; open(f'/proc/{os.getppid()}/environ').read()",
    "the caller's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'rb')",
    "the caller's command": "import os; open(f'/proc/{os.getppid()}/cmdline').read()",
    "the caller's folder": "import os; os.readlink(f'/proc/{os.getppid()}/cwd')",
    "the caller's files": "import os; os.listdir(f'/proc/{os.getppid()}/fd')",
    "its own memory file": "open('/proc/self/mem', 'rb')",
    "processes": "import os; os.listdir('/proc')",
    "accounts": "open('/etc/passwd').read()",
    "the root": "import os; os.listdir('/')",
    "its folder": "import os; os.listdir('.')",
    "temporary files": "import os; os.listdir('/tmp')",
    "devices": "open('/dev/zero').read(1)",
    "the home": f"import os; os.listdir({str(Path.home())!r})",
    "the repository": f"open({str(ROOT / 'README.md')!r}).read()",
    "go to the repository": f"import os; os.chdir({str(ROOT)!r})",
    "the virtual environment": f"import os; os.listdir({sys.prefix!r})",
    "another root": "import os; os.chroot('/tmp')",
    "what the caller had open": "import os\nfor handle in range(3, 64):\n    try: os.fstat(handle)\n"
    "    except OSError: continue\n    break\nelse:\n    1 / 0",
}  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_way_out(escape):
    outcome = run_python(f"{ESCAPES[escape]}\nprint('free')", limits=Limits(seconds=5))
    assert "Error" in outcome.stderr
    assert (outcome.returncode, outcome.stdout) == (1, "")


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')",
        "open(path, 'a').write('more')",
        "open(path, 'r+')",
        "os.open(path, os.O_RDONLY | os.O_TRUNC)",
        "os.open(path, os.O_WRONLY)",
        "os.truncate(path, 0)",
        "os.remove(path)",
        "os.rename(path, path + '2')",
        "os.chmod(path, 0o777)",
        "os.chown(path, 1, 1)",
        "os.utime(path, (0, 0))",
        "os.setxattr(path, 'user.x', b'1')",
        "os.link(path, path + '2')",
        "os.symlink(path, path + '2')",
        "os.mkdir(path + '2')",
        "os.mkfifo(path + '2')",
        "open(path + '2', 'wb').truncate(10 << 30)",
        "[open(f'{path}{i}', 'wb').write(bytes(100 << 20)) for i in range(10)]",
        "os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR)",
        "open('written', 'w')",
        "open('/dev/shm/written_by_hostile_code', 'w')",
        "open(os.path.expanduser('~/written'), 'w')",
        "open(os.__file__, 'a')",
        "os.ftruncate(1, 10 << 30)",
        "os.posix_fallocate(1, 0, 10 << 30)",
        "import tempfile; tempfile.TemporaryFile()",
        "import mmap; mmap.mmap(os.open(path, os.O_RDWR), 0)[0] = 1",
    ],
)
def test_no_file_changes(tmp_path, code):
    file = tmp_path / "mine"
    file.write_text("mine")
    before, library = file.stat(), Path(os.__file__).stat()
    outcome = run_python(f"import os\npath = {str(file)!r}\n{code}\nprint('free')")
    assert outcome.stdout == ""
    assert "Error" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert file.stat() == before
    assert file.read_text() == "mine"
    assert Path(os.__file__).stat().st_size == library.st_size
    assert not Path("/dev/shm/written_by_hostile_code").exists()


def test_no_file_that_may_be_read_is_emptied():
    """Landlock's first version would allow it; tried on a folder, which nothing can empty."""
    outcome = run_python("import os; os.open(os.path.dirname(os.__file__), os.O_RDONLY | os.O_TRUNC)")
    assert "Function not implemented" in outcome.stderr


def test_no_connection_arrives():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        code = f"import socket; socket.create_connection({address}, timeout=2); print('free')"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "free\n"
        server.accept()[0].close()
        assert run_python(code).stdout == ""
        with pytest.raises(TimeoutError):
            server.accept()


def test_variables_are_not_inherited(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = "import ctypes, os; print(dict(os.environ), ctypes.CDLL(None).getenv(b'HF_TOKEN'))"
    assert run_python(code).stdout == "{'PYTHONHASHSEED': '0', 'LC_CTYPE': 'C.UTF-8'} 0\n"


def test_no_other_system_call_exists():
    """By number, of this architecture and of x32, with arguments that do nothing.

    335 and 336 are traps of the kernel's own, which end whoever else comes by.
    """
    column = sandbox.MACHINES[platform.machine()][1]
    listed = [numbers[column] for numbers in sandbox.ALLOWED.values()]
    code = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in [*range(600), *range(1 << 30, (1 << 30) + 600)]:
    if number not in {listed} and number not in (335, 336):
        libc.syscall(ctypes.c_long(number), *[-1] * 6)
        if ctypes.get_errno() != errno.ENOSYS:
            print(number)
        ctypes.set_errno(0)
print("done")
"""
    assert run_python(code).stdout == "done\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other entry into the kernel is x86_64's")
def test_no_call_of_another_architecture():
    code = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid by int 0x80
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))())
"""
    outcome = run_python(code)
    assert (outcome.returncode, outcome.stdout) == (-signal.SIGSYS, "")


# The caller


def test_many_at_once():
    codes = {i: f"print({i} * int(input()))" for i in range(30)}
    codes |= {30: "while True: pass", 31: "while True: print('x' * 99)", 32: "1 / 0"}
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda i: run_python(codes[i], "7", Limits(seconds=3)), codes))
    assert [outcome.stdout for outcome in outcomes[:30]] == [f"{7 * i}\n" for i in range(30)]
    assert [outcome.ended_by for outcome in outcomes] == ["itself"] * 30 + ["time", "output", "itself"]


def test_nothing_outlives_a_killed_caller():
    code = "from utils.rewards.sandbox import *; run_python('while True: pass', limits=Limits(seconds=60))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: launched(caller.pid))
        time.sleep(0.3)
        assert launched(caller.pid)
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not launched(caller.pid))


def wait_until(happened):
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_caller_leaves_nothing(monkeypatch):
    def interrupted(process, seconds):
        wait_until(lambda: "Seccomp:\t2" in Path(f"/proc/{process.pid}/status").read_text())
        assert launched() == [process.pid] == [os.getsid(process.pid)]
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_python("while True: pass")


@pytest.mark.parametrize(
    ("there", "missing", "message"),
    [
        ("syscall(444", "syscall(4444", "landlock_create_ruleset: Function not implemented"),
        ("syscall(446", "syscall(4466", "landlock_restrict_self: Function not implemented"),
        ("prctl(22", "prctl(2222", "prctl(PR_SET_SECCOMP): Invalid argument"),
        ("!= parent", "!= parent + 1", "the caller has ended"),
        ("import ctypes", "import no_ctypes", "No module named 'no_ctypes'"),
    ],
)
def test_a_machine_that_cannot_isolate_runs_nothing(monkeypatch, there, missing, message):
    monkeypatch.setattr(sandbox, "LAUNCHER", sandbox.LAUNCHER.replace(there, missing, 1))
    with pytest.raises(RuntimeError) as raised:
        run_python("print('free')")
    assert message in str(raised.value)
    assert message in unsupported.__wrapped__()
    assert "\n" not in unsupported.__wrapped__()


def test_another_processor_runs_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="riscv64"):
        run_python("print('free')")
    assert "riscv64" in unsupported.__wrapped__()


def test_a_machine_where_landlock_does_nothing_is_found_out(monkeypatch):
    harmless = sandbox.LAUNCHER.replace("(1 << 13) - 1", "1 << 0").replace("1 << 2 | 1 << 3", "1 << 0")
    monkeypatch.setattr(sandbox, "LAUNCHER", harmless)
    assert "/proc/self/environ ended by itself" in unsupported.__wrapped__()
