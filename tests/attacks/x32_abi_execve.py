# expect: pass
# arch: x86_64
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(0x40000000 | 520, b"/bin/true", 0, 0) >= 0 else "contained")
