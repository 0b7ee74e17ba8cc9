# expect: pass
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_long
page = libc.mmap(0, 4096, 3, 0x22, -1, 0)
print("ESCAPED" if libc.mprotect(ctypes.c_long(page), 4096, 5) == 0 else "contained")
