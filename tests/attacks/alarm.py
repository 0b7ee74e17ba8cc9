# expect: pass
import signal, time
signal.alarm(1)
time.sleep(0.1)
print("contained")
