# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.signalfd(-1, (ctypes.c_char * 128)(), 0) >= 0 else "contained")
