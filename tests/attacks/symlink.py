# expect: pass
import os
try:
    os.symlink("/etc/passwd", "/tmp/codeseq-attack-symlink")
    print("ESCAPED")
except Exception:
    print("contained")
