# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.recvmsg(3, (ctypes.c_char * 64)(), 0) >= 0 else "contained")
