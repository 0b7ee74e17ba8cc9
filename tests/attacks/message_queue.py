# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.msgget(0, 0o1777) >= 0 else "contained")
