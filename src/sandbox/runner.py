"""The Python side of the judge: a fork server, or the runner of one program.

Contract: started by the launcher with -s -S -B and descriptors 0 (a case's input), 1 (its output),
2 (diagnostics), 3 (the channel to the supervisor), 4 (an empty directory), 5 (/dev/null) and 6
(this text). `sys.argv[1]` is "server" or "single".
  server: reads its settings, reports "R", then forks a child for each descriptor it is sent.
  single: reads its settings from the program's own channel and runs that one program.
A child seals itself (resource limits, system call filter) before it reads a byte of the program.
It never sees expected outputs. All checks that matter are made outside: nothing here is trusted
once a program has run.
"""

import sys

CONTROL, EMPTY_DIR, NULL, TEXT = 3, 4, 5, 6
PROGRAM_NAME = "<program>"
MAX_MESSAGE_CHARS = 2000
# What only this runner needs, and no program may import.
OWN_MODULES = ("_socket", "ctypes", "_ctypes")
# A program without these words has no object that says or writes something when it goes.
LAST_WORDS = (b"open", b"IO", b"Buffered", b"detach", b"__del__", b"finalize")


def load(names):
    """Imports what programs may use, and what those modules import later by themselves."""
    import importlib

    loaded = []
    for name in names:
        try:
            importlib.import_module(name)
            loaded.append(name)
        except ImportError:
            pass
    return loaded


class Known:
    """The only import finder: loads again what a program dropped, refuses by name what is not here."""

    def __init__(self, modules):
        from importlib.machinery import ModuleSpec

        self.modules, self.spec = modules, ModuleSpec

    def find_spec(self, name, path=None, target=None):
        if name in self.modules:
            return self.spec(name, self)
        raise ModuleNotFoundError("import of %r is refused in the judge" % name, name=name)

    def create_module(self, spec):
        return self.modules[spec.name]

    def exec_module(self, module):
        """It ran long ago."""


def drop_files_and_rights(settings):
    """Gives up the file system, the user and the capabilities, as far as this process may."""
    import os

    done = {"chroot": False, "user": False, "capabilities": False, "files": False}
    try:
        os.fchdir(EMPTY_DIR)
        os.chroot(".")
        done["chroot"] = True
    except OSError:
        pass
    if os.getuid() == 0 and settings["drop_user"] is not None:
        try:
            os.setgroups([])
            os.setresgid(*[settings["drop_user"]] * 3)
            os.setresuid(*[settings["drop_user"]] * 3)
        except OSError:
            pass
    done["user"] = os.getuid() != 0
    libc = native()
    if libc is None:
        return done
    # Capabilities, version 3: effective, permitted and inheritable of both halves are zero.
    header = (libc.u32 * 2)(0x20080522, 0)
    done["capabilities"] = libc.call("capset", header, (libc.u32 * 6)()) == 0
    if settings["landlock_abi"]:
        # A second Landlock layer that allows no file at all: the modules are loaded.
        rights = (libc.u64 * 1)((1 << 13) - 1)
        ruleset = libc.syscall(444, rights, 8, 0)
        done["files"] = ruleset >= 0 and libc.syscall(446, ruleset, 0) == 0
        if ruleset >= 0:
            os.close(ruleset)
    return done


def adapt(settings):
    """Makes what contest programs ask the system for work as far as it can.

    Returns the call that sets limits, which programs do not have.
    """
    import _thread
    import os
    import resource
    import threading

    set_limit, set_stack_size = resource.setrlimit, threading.stack_size
    most = settings["memory_bytes"] // 2

    def setrlimit(which, limits):
        # The main stack is large already. Other limits are the judge's.
        if which != resource.RLIMIT_STACK:
            raise PermissionError(1, "resource limits are the judge's")

    def stack_size(*size):
        return set_stack_size(*[min(n, most) for n in size])

    resource.setrlimit = setrlimit
    threading.stack_size = _thread.stack_size = stack_size
    # The locale of the environment, for `setlocale(LC_ALL, "")`, is the one that needs no files.
    os.environ["LANG"] = "C"
    return set_limit


class Native:
    """The few C calls that Python's own modules lack."""

    def __init__(self, ctypes):
        self.u32, self.u64 = ctypes.c_uint32, ctypes.c_uint64
        self.library = ctypes.CDLL(None, use_errno=True)
        # Not os.fork: its handlers serve threads and random seeds that a server does not have, and
        # touch hundreds of pages in each child. PyDLL keeps the interpreter's lock held.
        self.fork = ctypes.PyDLL(None, use_errno=True).fork
        self.errno = ctypes.get_errno
        self.prctl = self.library.prctl
        self.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        self.address = ctypes.addressof
        self.raw = self.library.syscall
        self.raw.restype = ctypes.c_long
        self.ulong = ctypes.c_ulong

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

        self.program, self.kept = Program, []

    def call(self, name, *args):
        return getattr(self.library, name)(*args)

    def syscall(self, number, *args):
        return self.raw(number, *[self.ulong(a) if isinstance(a, int) else a for a in args])

    def load_filter(self, filter_hex):
        """Decodes a filter; what it returns goes to `seccomp`."""
        filter_bytes = bytes.fromhex(filter_hex)
        self.kept.append(self.program(len(filter_bytes) // 8, filter_bytes))
        return self.address(self.kept[-1])

    def seccomp(self, program):
        """PR_SET_SECCOMP, SECCOMP_MODE_FILTER."""
        return self.prctl(22, 2, program, 0, 0) == 0

    def die_with_parent(self):
        """PR_SET_PDEATHSIG, SIGKILL."""
        self.prctl(1, 9, None, 0, 0)


NATIVE = []


def native():
    """The C calls, or None where Python has no ctypes."""
    if not NATIVE:
        try:
            import ctypes

            NATIVE.append(Native(ctypes))
        except (ImportError, OSError):
            NATIVE.append(None)
    return NATIVE[0]


def prepare(settings):
    """Everything that does not depend on a program: what the supervisor wants to know, a session."""
    import atexit
    import gc
    import os
    import resource

    sys.path[:] = settings["python_path"]
    if settings["seals_itself"] and native() is None:
        raise OSError("this Python has no ctypes")
    loaded = load(settings["modules"])
    settings["set_limit"] = adapt(settings)
    atexit._clear()
    done = drop_files_and_rights(settings)
    sys.path[:] = []
    sys.path_importer_cache.clear()
    # Where the descriptor of diagnostics was, programs find /dev/null.
    os.dup2(NULL, 2)
    os.close(TEXT)
    os.close(EMPTY_DIR)
    for name, value in (
        # Threads keep the smaller default that the C library read at the start.
        ("RLIMIT_STACK", resource.getrlimit(resource.RLIMIT_STACK)[1]),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", settings["file_bytes"]),
        ("RLIMIT_AS", settings["memory_bytes"]),
        ("RLIMIT_NOFILE", 32),
    ) + (() if settings["seccomp"] else (("RLIMIT_NPROC", 64),)):
        settings["set_limit"](getattr(resource, name), (value, value))
    if native() is not None:
        # Changing the user cleared it.
        native().die_with_parent()
        if settings["seccomp"]:
            settings["child_filter"] = native().load_filter(settings["child_filter"])
            for filter_hex in settings["server_filters"]:
                if not native().seccomp(native().load_filter(filter_hex)):
                    raise OSError("the kernel refused a seccomp filter")
            done["seccomp"] = True
    done["modules"] = loaded
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]
    sys.meta_path[:] = [Known(dict(sys.modules))]
    session = Session(settings)
    session.warm_up()
    session.measure_depth()
    gc.collect()
    gc.freeze()
    return done, session


def seal(settings):
    """What each child does to itself before it sees the program."""
    import os
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_secs = int(used.ru_utime + used.ru_stime) + settings["cpu_secs"]
    settings["set_limit"](resource.RLIMIT_CPU, (cpu_secs, cpu_secs))
    if native() is not None:
        native().die_with_parent()
        if settings["seccomp"] and not native().seccomp(settings["child_filter"]):
            os._exit(97)


def frame(kind, payload=b""):
    """One message to the supervisor."""
    return kind + len(payload).to_bytes(4, "little") + payload


def read_exactly(os_read, fd, length):
    parts = []
    while length:
        part = os_read(fd, length)
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def describe(error):
    """Line, type and message of an exception, as a payload."""
    try:
        line = 0
        if isinstance(error, SyntaxError) and error.filename == PROGRAM_NAME:
            line = error.lineno or 0
        step = error.__traceback__
        while step is not None:
            if step.tb_frame.f_code.co_filename == PROGRAM_NAME:
                line = step.tb_lineno
            step = step.tb_next
        try:
            message = str(error)[:MAX_MESSAGE_CHARS]
        except BaseException:
            message = "(no message)"
        text = "%d\0%s\0%s" % (line, type(error).__name__, message)
        return text.encode("utf-8", "replace")
    except BaseException:
        return b"0\0Exception\0"


def exit_status(code):
    """What a process ends with after `sys.exit(code)`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    return 1


class Session:
    """Runs one program on its cases, each in a fresh `__main__` with its own streams.

    What a case leaves elsewhere in the interpreter stays: the supervisor gives each case of a program
    that mentions such things a process of its own.
    """

    def __init__(self, settings):
        import atexit
        import builtins
        import decimal
        import gc
        import io
        import os
        import random
        import threading
        import types

        self.atexit, self.os, self.io, self.random, self.types = atexit, os, io, random, types
        self.decimal, self.threading, self.collect = decimal, threading, gc.collect
        self.recursion, self.own_depth = settings["recursion"], 0
        self.builtins = builtins.__dict__
        # Not there without the site module, and common in programs.
        self.builtins["exit"] = self.builtins["quit"] = sys.exit
        self.fresh_builtins = dict(self.builtins)
        self.visible_builtins = builtins
        if settings["profile"] == "paper":
            removed = ("open", "eval", "exec")
            self.visible_builtins = {k: v for k, v in self.builtins.items() if k not in removed}
        self.exec, self.write, self.read = exec, os.write, os.read
        self.source = b""
        # Programs close descriptors 0 and 1, if only by `open(0)`.
        self.streams = ((os.dup(0), 0), (os.dup(1), 1))

    def warm_up(self):
        """Runs a first program, so that no child has to fill the interpreter's caches."""
        source = b"import sys\nfor line in sys.stdin:\n    print(int(line or 0) + 1)\nprint('%d' % 1, sum([1]))"
        for _ in range(20):
            self.case(compile(source, PROGRAM_NAME, "exec", 0, True))
        try:
            compile("(", PROGRAM_NAME, "exec", 0, True)
        except SyntaxError as error:
            describe(error)

    def measure_depth(self):
        """Finds how much of the recursion limit goes to the runner: a program has all but one without it.

        Called as deep as `run`, once calls are as specialised as there.
        """
        source = (
            b"import sys\ndef f(n):\n    sys.argv[0] = n\n    f(n + 1)\n"
            b"try:\n    f(1)\nexcept RecursionError:\n    pass"
        )
        recursion, self.recursion = self.recursion, 200
        self.case(compile(source, PROGRAM_NAME, "exec", 0, True))
        self.own_depth = self.recursion - 1 - sys.argv[0]
        self.recursion = recursion

    def run(self, channel):
        """Reads the program, then runs a case for each "R" until the channel closes."""
        self.channel = channel
        length = int.from_bytes(read_exactly(self.read, self.channel, 4), "little")
        self.source = read_exactly(self.read, self.channel, length)
        code = None
        while self.read(self.channel, 1) == b"R":
            try:
                if code is None:
                    code = compile(self.source.decode("utf-8"), PROGRAM_NAME, "exec", 0, True)
            except (SyntaxError, ValueError, RecursionError, OverflowError, SystemError) as error:
                self.write(self.channel, frame(b"S", describe(error)))
                return
            except MemoryError as error:
                self.write(self.channel, frame(b"M", describe(error)))
                return
            self.write(self.channel, self.case(code))

    def case(self, code):
        """Runs one case and returns its frame."""
        self.reset()
        ending = frame(b"D")
        try:
            try:
                self.exec(code, self.main.__dict__)
            finally:
                self.restore_builtins()
                sys.settrace(None)
                sys.setprofile(None)
                self.finish()
                self.flush()
        except SystemExit as stop:
            if exit_status(stop.code) != 0:
                ending = frame(b"E", describe(stop))
        except MemoryError as error:
            ending = frame(b"M", describe(error))
        except BaseException as error:
            ending = frame(b"E", describe(error))
        try:
            self.drop()
        except BaseException:
            pass
        return ending

    def reset(self):
        """What a program finds at its start, as far as programs commonly change it."""
        os = self.os
        for kept, fd in self.streams:
            os.dup2(kept, fd)
            os.lseek(fd, 0, 0)
        self.main = self.types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = self.visible_builtins
        self.main.__dict__["__file__"] = "/program.py"
        sys.modules["__main__"] = self.main
        sys.stdin = sys.__stdin__ = self.stream(0, "r", "<stdin>", "surrogateescape")
        self.out = sys.stdout = sys.__stdout__ = self.stream(1, "w", "<stdout>", "surrogateescape")
        sys.stderr = sys.__stderr__ = self.stream(2, "w", "<stderr>", "backslashreplace")
        sys.argv = ["program.py"]
        if sys.path:
            sys.path = []
        sys.setrecursionlimit(self.recursion + self.own_depth)
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)
        self.random.seed(0)
        self.decimal.setcontext(self.decimal.DefaultContext.copy())

    def stream(self, fd, mode, name, errors):
        """A standard stream as Python makes it."""
        io = self.io
        raw = io.FileIO(fd, mode, closefd=False)
        raw.name = name
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        text = io.TextIOWrapper(buffer, "utf-8", errors)
        text.mode = mode
        return text

    def restore_builtins(self):
        """Undoes changes to builtins, for the runner's sake.

        Comparing or copying the values would touch, and so copy, a page for nearly every one; a
        program that gets there without a word only harms itself.
        """
        now, fresh = self.builtins, self.fresh_builtins
        if b"builtins" in self.source or b"__self__" in self.source or len(now) != len(fresh):
            now.clear()
            now.update(fresh)

    def finish(self):
        """As at the end of a process: wait for threads that are no daemons, run exit handlers."""
        if self.threading.active_count() > 1:
            self.threading._shutdown()
        self.atexit._run_exitfuncs()

    def flush(self):
        """Writes out what `print` would go to; a replacement must not have lost its file."""
        out = sys.stdout
        if hasattr(out, "flush") and not getattr(out, "closed", False):
            out.flush()

    def drop(self):
        """As at the end of a process: the program's objects go, its files are written out and closed.

        This must be over before the next case opens its streams under the same descriptors.
        """
        namespace, self.main = self.main.__dict__, None
        sys.modules.pop("__main__", None)
        if any(word in self.source for word in LAST_WORDS):
            # Whole, in the order of their references, and not while one of them is missing.
            del namespace
            self.collect()
        else:
            namespace.clear()
        for out in (sys.stdout, self.out):
            try:
                out.flush()
            except BaseException:
                pass
        sys.stdin = sys.stdout = sys.stderr = out = self.out = None
        sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None


def serve(control, sockets, settings, session):
    """Forks a child for each descriptor that arrives; reports its pidfd, then how it ended.

    `sockets` is the module of `control`: programs, and so their runner, cannot import it.
    """
    import os
    import struct

    rights = sockets.SOL_SOCKET, sockets.SCM_RIGHTS
    space = sockets.CMSG_SPACE(4)
    while True:
        data, ancillary, _, _ = control.recvmsg(16, space)
        if not data:
            os._exit(0)
        fd = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
        pid = native().fork()
        if pid < 0:
            os.close(fd)
            control.send(b"E" + os.strerror(native().errno()).encode())
            continue
        if pid == 0:
            # Kept here: a program may replace it in `os`.
            leave = os._exit
            try:
                os.close(control.detach())
                seal(settings)
                os.write(fd, frame(b"H"))
                session.run(fd)
            except BaseException:
                leave(1)
            leave(0)
        os.close(fd)
        pidfd = os.pidfd_open(pid)
        control.sendmsg([b"P"], [(*rights, pidfd.to_bytes(4, sys.byteorder))])
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        cpu_us = int((usage.ru_utime + usage.ru_stime) * 1e6)
        control.send(struct.pack("<cxxxiqq", b"X", status, cpu_us, usage.ru_maxrss))


def run_single(settings, session, report):
    """Runs the one program. As deep a function as `serve`, for the recursion limit."""
    import json
    import os

    leave = os._exit
    try:
        seal(settings)
        os.write(CONTROL, frame(b"H", json.dumps(report).encode()))
        session.run(CONTROL)
    except BaseException:
        leave(1)
    leave(0)


def main():
    import json
    import os

    if sys.argv[1] == "server":
        import _socket as sockets

        control = sockets.socket(fileno=CONTROL)
        settings = json.loads(control.recv(1 << 20))
        try:
            report, session = prepare(settings)
        except BaseException as error:
            control.send(b"E" + ("%s: %s" % (type(error).__name__, error)).encode())
            os._exit(1)
        control.send(b"R" + json.dumps(report).encode())
        serve(control, sockets, settings, session)
    length = int.from_bytes(read_exactly(os.read, CONTROL, 4), "little")
    settings = json.loads(read_exactly(os.read, CONTROL, length))
    try:
        report, session = prepare(settings)
    except BaseException:
        os._exit(1)
    run_single(settings, session, report)


main()
