# expect: pass
# cases: 3
import sys
sys.stdin = open(0)
print('contained' if int(input()) >= 7 else 'lost')
