# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.fexecve(0, (ctypes.c_char_p * 1)(), (ctypes.c_char_p * 1)())
print("ESCAPED")
