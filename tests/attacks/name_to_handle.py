# expect: forbidden
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.name_to_handle_at(0, b".", (ctypes.c_char * 64)(), ctypes.byref(ctypes.c_int()), 0)
print("ESCAPED")
