# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(444, 0, 0, 1) >= 0 else "contained")
