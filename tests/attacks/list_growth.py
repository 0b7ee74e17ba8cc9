# expect: memory|cpu_time
kept = []
while True:
    kept.append(bytes(10 ** 6))
