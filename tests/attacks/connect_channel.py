# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.connect(3, b"\0" * 16, 16)
print("ESCAPED")
