# expect: pass
# cases: 3
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(3)
pool.submit(print, 'contained')
