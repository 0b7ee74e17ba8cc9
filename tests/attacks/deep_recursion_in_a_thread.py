# expect: pass
# cases: 4
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 28)
def depth(n):
    return n and 1 + depth(n - 1)
threading.Thread(target=lambda: print("contained" if depth(20_000) == 20_000 else "lost")).start()
