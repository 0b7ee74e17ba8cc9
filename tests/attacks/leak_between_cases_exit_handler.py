# expect: pass
# cases: 3
import builtins, sys, decimal
leaked = __import__("atexit")._ncallbacks() > 0
seen = leaked
import atexit
atexit.register(lambda: None)
print("ESCAPED" if seen else "contained")
