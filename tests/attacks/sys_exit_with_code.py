# expect: runtime_error
import sys
print("contained")
sys.exit(1)
