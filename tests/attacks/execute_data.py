# expect: killed
import types
ctypes = next(c for c in object.__subclasses__() if c.__name__ == "CDLL").__init__.__globals__
ctypes = types.SimpleNamespace(**ctypes)
buffer = ctypes.create_string_buffer(b"\xc3" * 16)
ctypes.CFUNCTYPE(None)(ctypes.addressof(buffer))()
print("ESCAPED")
