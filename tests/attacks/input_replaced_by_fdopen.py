# expect: pass
# cases: 3
import os, sys
sys.stdin = os.fdopen(0)
print('contained' if int(input()) >= 7 else 'lost')
