# expect: pass
# cases: 3
import builtins, sys, decimal
seen = "leak" in sys.modules
sys.modules["leak"] = sys
print("ESCAPED" if seen else "contained")
