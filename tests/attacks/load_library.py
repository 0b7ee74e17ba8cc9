# expect: pass
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
try:
    ctypes.CDLL("/lib/x86_64-linux-gnu/libutil.so.1")
    print("ESCAPED")
except OSError:
    print("contained")
