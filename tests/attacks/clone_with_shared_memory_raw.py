# expect: pass
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.syscall(56, 0x100, 0, 0, 0, 0) >= 0 else "contained")
