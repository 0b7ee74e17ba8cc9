# expect: pass
import os
try:
    assert hasattr(os, "copy_file_range")
    os.copy_file_range(0, 1, 10)
    print("ESCAPED")
except Exception:
    print("contained")
