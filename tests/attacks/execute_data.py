# expect: killed
import ctypes
buffer = ctypes.create_string_buffer(b"\xc3" * 16)
ctypes.CFUNCTYPE(None)(ctypes.addressof(buffer))()
print("ESCAPED")
