# expect: pass
# cases: 3
import builtins, sys, decimal
seen = "leak" in globals()
leak = 1
print("ESCAPED" if seen else "contained")
