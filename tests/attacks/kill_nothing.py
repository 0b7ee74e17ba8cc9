# expect: forbidden
import os
os.kill(0, 0)
print("ESCAPED")
