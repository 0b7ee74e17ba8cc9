# expect: cpu_time
import os
os.read(0, 100)
while not os.read(0, 1):
    pass
