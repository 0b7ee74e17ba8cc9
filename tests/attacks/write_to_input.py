# expect: pass
import os
try:
    os.write(0, b"x")
    print("ESCAPED")
except OSError:
    print("contained")
