# expect: pass
# cases: 2
import sys
sys.setrecursionlimit(50)
print("contained")
