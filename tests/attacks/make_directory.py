# expect: pass
import os
try:
    os.mkdir("/tmp/codeseq-attack-dir")
    print("ESCAPED")
except Exception:
    print("contained")
