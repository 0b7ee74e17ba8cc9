# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for fd in range(64):
    libc.listen(fd, 1)
print("ESCAPED")
