# expect: wrong_answer|runtime_error|killed|forbidden
import os
for fd in range(2, 64):
    try:
        os.dup2(1, fd)
    except OSError:
        pass
