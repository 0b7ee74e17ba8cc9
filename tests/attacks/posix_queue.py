# expect: pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print("ESCAPED" if libc.mq_open(b"/codeseq-attack", 0o102, 0o600, 0) >= 0 else "contained")
