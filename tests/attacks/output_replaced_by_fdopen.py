# expect: pass
# cases: 3
import os, sys
sys.stdout = os.fdopen(1, 'w')
print('contained' if int(input()) >= 7 else 'lost')
