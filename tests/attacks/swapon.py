# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.swapon(b"/dev/sda", 0)
print("ESCAPED")
