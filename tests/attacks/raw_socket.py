# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socket(2, 3, 1)
print("ESCAPED")
