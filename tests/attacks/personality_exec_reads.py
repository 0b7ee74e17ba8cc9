# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.personality(0x400000)
print("ESCAPED")
