# expect: forbidden
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
print("ESCAPED")
