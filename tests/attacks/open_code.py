# expect: pass
import _io
try:
    _io.open_code("/etc/passwd")
    print("ESCAPED")
except Exception:
    print("contained")
