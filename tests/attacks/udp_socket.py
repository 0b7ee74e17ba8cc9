# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socket(2, 2, 0)
print("ESCAPED")
