# expect: forbidden
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
libc = ctypes.CDLL(None, use_errno=True)
libc.fexecve(0, (ctypes.c_char_p * 1)(), (ctypes.c_char_p * 1)())
print("ESCAPED")
