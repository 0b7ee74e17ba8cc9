# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.prctl(1, 0, 0, 0, 0) >= 0 else "contained")
