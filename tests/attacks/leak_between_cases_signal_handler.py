# expect: pass
# cases: 3
import signal
print('contained' if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL else 'ESCAPED')
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
