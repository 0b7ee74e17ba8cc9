# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_long
print("ESCAPED" if libc.mmap(0, 4096, 7, 0x22, -1, 0) != -1 else "contained")
