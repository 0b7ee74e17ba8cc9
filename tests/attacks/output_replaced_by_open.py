# expect: pass
# cases: 3
import sys
sys.stdout = open(1, 'w')
print('contained' if int(input()) >= 7 else 'lost')
