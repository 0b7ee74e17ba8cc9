# expect: pass
import os
try:
    os.mknod("/tmp/codeseq-attack-device", 0o20666, os.makedev(1, 1))
    print("ESCAPED")
except Exception:
    print("contained")
