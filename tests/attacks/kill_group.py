# expect: forbidden
import os
os.killpg(0, 9)
print("ESCAPED")
