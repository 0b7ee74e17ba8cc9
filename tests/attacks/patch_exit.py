# expect: pass
import os, sys
os._exit = sys.exit = exit = lambda *_: None
print("contained")
