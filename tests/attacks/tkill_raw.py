# expect: forbidden
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(200, 1, 9)
print("ESCAPED")
