# expect: pass
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(437, -100, b"/", (ctypes.c_uint64 * 3)(), 24) >= 0 else "contained")
