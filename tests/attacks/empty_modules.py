# expect: any
# cases: 2
import sys
sys.modules.clear()
print("contained")
