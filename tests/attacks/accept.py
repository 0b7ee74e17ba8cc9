# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.accept(3, None, None)
print("ESCAPED")
