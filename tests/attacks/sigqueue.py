# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.sigqueue(1, 9, 0)
print("ESCAPED")
