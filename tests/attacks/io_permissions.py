# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.iopl(3) >= 0 else "contained")
