# expect: pass
import signal
try:
    signal.raise_signal(signal.SIGKILL)
    print("ESCAPED")
except Exception:
    print("contained")
