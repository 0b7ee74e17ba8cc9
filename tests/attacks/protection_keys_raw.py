# expect: pass
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(329, 0, 4096, 7, -1) >= 0 else "contained")
