# expect: pass
import signal
try:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    print("ESCAPED")
except Exception:
    print("contained")
