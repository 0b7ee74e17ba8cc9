# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_writev(1, 0, 0, 0, 0, 0)
print("ESCAPED")
