# expect: pass
# cases: 3
import builtins, sys, decimal
seen = "json" not in sys.modules
sys.modules.pop("json", None)
print("ESCAPED" if seen else "contained")
