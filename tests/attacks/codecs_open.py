# expect: pass
import codecs
try:
    codecs.open("/etc/passwd")
    print("ESCAPED")
except Exception:
    print("contained")
