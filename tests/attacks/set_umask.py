# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if ctypes.c_int(libc.umask(0)).value >= 0 else "contained")
