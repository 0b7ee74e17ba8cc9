# expect: memory|cpu_time|wrong_answer
x = ((2 ** 127) ** 127) ** 127 ** 127
print(x % 10)
