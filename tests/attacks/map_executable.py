# expect: pass
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_long
print("ESCAPED" if libc.mmap(0, 4096, 7, 0x22, -1, 0) != -1 else "contained")
