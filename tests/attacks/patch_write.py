# expect: wrong_answer|wall_time|runtime_error
import os
os.write = lambda *_: 0
