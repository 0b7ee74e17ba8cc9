# expect: pass
import posix
try:
    posix.open("/etc/passwd", 0)
    print("ESCAPED")
except Exception:
    print("contained")
