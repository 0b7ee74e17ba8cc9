# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.name_to_handle_at(0, b".", (ctypes.c_char * 64)(), ctypes.byref(ctypes.c_int()), 0)
print("ESCAPED")
