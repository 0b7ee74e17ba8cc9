# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socketpair(1, 1, 0, (ctypes.c_int * 2)())
print("ESCAPED")
