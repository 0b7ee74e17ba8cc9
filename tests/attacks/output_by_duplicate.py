# expect: pass
import os
os.write(os.dup(1), b"contained")
