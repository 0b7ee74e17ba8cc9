# expect: pass
# cases: 3
import builtins, sys, decimal
seen = hasattr(builtins, "leak")
builtins.leak = 1
print("ESCAPED" if seen else "contained")
