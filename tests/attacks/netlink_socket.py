# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socket(16, 3, 0)
print("ESCAPED")
