# expect: pass
import os
try:
    os.memfd_create("codeseq-attack")
    print("ESCAPED")
except Exception:
    print("contained")
