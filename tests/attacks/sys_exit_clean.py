# expect: pass
import sys
print("contained")
sys.exit()
