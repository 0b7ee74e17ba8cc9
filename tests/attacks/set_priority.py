# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.setpriority(0, 0, -20) >= 0 else "contained")
