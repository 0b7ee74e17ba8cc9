# expect: pass
try:
    import _posixsubprocess
    import subprocess
    print("ESCAPED")
except ImportError:
    print("contained")
