# expect: pass
import _io
try:
    _io.FileIO("/etc/passwd")
    print("ESCAPED")
except Exception:
    print("contained")
