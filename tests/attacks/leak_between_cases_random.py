# expect: pass
# cases: 3
import random
first = random.random()
random.seed(int(input()) * 1000)
print("contained" if abs(first - 0.8444218515250481) < 1e-15 else "ESCAPED")
