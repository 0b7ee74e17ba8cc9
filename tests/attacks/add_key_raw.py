# expect: forbidden
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(248, b"user", b"a", b"b", 1, -1)
print("ESCAPED")
