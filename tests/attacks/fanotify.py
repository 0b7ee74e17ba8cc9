# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.fanotify_init(0, 0)
print("ESCAPED")
