# expect: pass
import os
try:
    os.unlink("/tmp/codeseq-attack-victim")
    print("ESCAPED")
except Exception:
    print("contained")
