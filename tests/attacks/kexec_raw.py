# expect: forbidden
# arch: x86_64
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(246, 0, 0, 0, 0)
print("ESCAPED")
