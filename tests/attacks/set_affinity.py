# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.sched_setaffinity(0, 8, (ctypes.c_uint64 * 1)(1)) >= 0 else "contained")
