# expect: forbidden
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.acct(b"/tmp/codeseq-attack-acct")
print("ESCAPED")
