# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.sethostname(b"x", 1) >= 0 else "contained")
