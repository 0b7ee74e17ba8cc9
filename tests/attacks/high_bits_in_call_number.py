# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(ctypes.c_ulong(0x7fffffff)) >= 0 else "contained")
