# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000)
print("ESCAPED")
