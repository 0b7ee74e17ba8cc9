# expect: forbidden
import signal
signal.pidfd_send_signal(0, 9)
print("ESCAPED")
