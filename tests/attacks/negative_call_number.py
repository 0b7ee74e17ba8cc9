# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(-1) >= 0 else "contained")
