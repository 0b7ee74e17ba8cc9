# expect: forbidden
import os
os.fork()
print("ESCAPED")
