# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.socket(17, 3, 0)
print("ESCAPED")
