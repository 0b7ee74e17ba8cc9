# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(437, -100, b"/", (ctypes.c_uint64 * 3)(), 24) >= 0 else "contained")
