# expect: pass
import os
print("ESCAPED" if os.system("echo out") == 0 else "contained")
