# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.clock_settime(0, (ctypes.c_long * 2)(0, 0))
print("ESCAPED")
