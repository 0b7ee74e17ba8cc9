# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_long
page = libc.mmap(0, 4096, 3, 0x22, -1, 0)
print("ESCAPED" if libc.mprotect(ctypes.c_long(page), 4096, 5) == 0 else "contained")
