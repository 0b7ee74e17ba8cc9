# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socket(10, 1, 0)
print("ESCAPED")
