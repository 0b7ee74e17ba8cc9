# expect: pass
# cases: 2
import sys
sys.settrace(lambda *_: None)
sys.setprofile(lambda *_: None)
print("contained")
