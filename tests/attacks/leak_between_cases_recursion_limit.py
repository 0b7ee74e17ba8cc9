# expect: pass
# cases: 3
import builtins, sys, decimal
seen = sys.getrecursionlimit() > 5000
sys.setrecursionlimit(9999)
print("ESCAPED" if seen else "contained")
