# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.shmget(0, 4096, 0o1777) >= 0 else "contained")
