# expect: pass
import os
try:
    os.rename("/etc/hostname", "/tmp/codeseq-attack-rename")
    print("ESCAPED")
except Exception:
    print("contained")
