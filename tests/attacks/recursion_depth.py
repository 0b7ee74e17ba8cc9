# expect: pass
# cases: 3
import sys
depth = 0
def down():
    global depth
    depth += 1
    down()
try:
    down()
except RecursionError:
    pass
print("contained" if depth == 999 else depth)
