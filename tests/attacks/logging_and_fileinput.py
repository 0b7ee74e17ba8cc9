# expect: pass
# cases: 3
import fileinput, logging
logging.basicConfig()
logging.error('unseen')
print('contained' if sum(map(int, fileinput.input())) >= 7 else 'lost')
