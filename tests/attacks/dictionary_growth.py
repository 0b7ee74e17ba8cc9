# expect: memory|cpu_time
kept = {}
while True:
    kept[len(kept)] = "x" * 10_000 + str(len(kept))
