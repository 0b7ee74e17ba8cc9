# expect: pass
# cases: 3
import builtins
builtins.len = builtins.range = builtins.isinstance = None
print("contained")
