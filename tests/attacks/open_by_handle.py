# expect: forbidden
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.open_by_handle_at(0, (ctypes.c_char * 64)(), 0)
print("ESCAPED")
