# expect: pass
# cases: 3
import io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.detach())
sys.stdin = io.TextIOWrapper(sys.stdin.detach())
print('contained' if int(input()) >= 7 else 'lost')
