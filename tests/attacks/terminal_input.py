# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.ioctl(0, 0x5412, b"x") >= 0 else "contained")
