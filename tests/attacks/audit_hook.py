# expect: any
# cases: 2
import sys
def hook(name, args):
    raise RuntimeError
sys.addaudithook(hook)
print("contained")
