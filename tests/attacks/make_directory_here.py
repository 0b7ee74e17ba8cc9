# expect: pass
import os
try:
    os.mkdir("codeseq-attack-dir")
    print("ESCAPED")
except Exception:
    print("contained")
