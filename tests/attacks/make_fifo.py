# expect: pass
import os
try:
    os.mkfifo("/tmp/codeseq-attack-fifo")
    print("ESCAPED")
except Exception:
    print("contained")
