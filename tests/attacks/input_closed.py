# expect: pass
# cases: 2
open(0).close()
print("contained")
