# expect: forbidden
# arch: x86_64
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(155, b"/", b"/")
print("ESCAPED")
