# expect: pass
import sys
from importlib.machinery import PathFinder
sys.meta_path.append(PathFinder)
sys.path.extend(["/usr/lib/python3/dist-packages", "/tmp"])
try:
    import numpy
    print("ESCAPED")
except ImportError:
    print("contained")
