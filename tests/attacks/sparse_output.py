# expect: output_limit
import os
os.lseek(1, 10 ** 9, 0)
os.write(1, b"x")
