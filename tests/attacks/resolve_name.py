# expect: forbidden|pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.getaddrinfo(b"example.org", b"80", None, ctypes.byref(ctypes.c_void_p()))
print("contained")
