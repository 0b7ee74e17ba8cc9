# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.open_by_handle_at(0, (ctypes.c_char * 64)(), 0)
print("ESCAPED")
