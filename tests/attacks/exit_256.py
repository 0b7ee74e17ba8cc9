# expect: pass
# cases: 3
import sys
print('contained')
sys.exit(256)
