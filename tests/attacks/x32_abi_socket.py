# expect: pass
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(0x40000000 | 41, 2, 1, 0) >= 0 else "contained")
