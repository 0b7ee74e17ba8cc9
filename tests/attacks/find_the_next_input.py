# expect: pass
# cases: 3
import gc, os
data = os.pread(0, 10 ** 6, 0) if hasattr(os, "pread") else b""
print("contained" if len(data.split()) <= 1 else "ESCAPED")
