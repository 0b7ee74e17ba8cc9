# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.reboot(0)
print("ESCAPED")
