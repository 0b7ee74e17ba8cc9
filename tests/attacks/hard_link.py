# expect: pass
import os
try:
    os.link("/etc/passwd", "/tmp/codeseq-attack-link")
    print("ESCAPED")
except Exception:
    print("contained")
