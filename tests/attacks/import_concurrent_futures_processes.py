# expect: forbidden
from concurrent.futures import ProcessPoolExecutor
print("ESCAPED")
