# expect: wall_time
import os, time
os.closerange(2, 1024)
time.sleep(1000)
