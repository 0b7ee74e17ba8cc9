# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.semget(0, 1, 0o1777) >= 0 else "contained")
