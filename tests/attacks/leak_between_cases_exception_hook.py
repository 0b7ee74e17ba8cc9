# expect: pass
# cases: 3
import sys
print('contained' if sys.excepthook is sys.__excepthook__ else 'ESCAPED')
sys.excepthook = print
