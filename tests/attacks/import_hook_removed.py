# expect: pass
import sys
sys.meta_path.clear()
sys.path.append("/usr/lib/python3")
try:
    import numpy
    print("ESCAPED")
except ImportError:
    print("contained")
