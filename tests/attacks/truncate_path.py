# expect: pass
import os
try:
    os.truncate("/tmp/codeseq-attack-victim", 0)
    print("ESCAPED")
except Exception:
    print("contained")
