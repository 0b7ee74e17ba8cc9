# expect: memory|runtime_error
print((1 << 10 ** 12) % 7)
