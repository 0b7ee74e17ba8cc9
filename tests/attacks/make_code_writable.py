# expect: pass
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)

address = ctypes.cast(libc.getpid, ctypes.c_void_p).value & ~4095
print("ESCAPED" if libc.mprotect(ctypes.c_void_p(address), 4096, 7) == 0 else "contained")
