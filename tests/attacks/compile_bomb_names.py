# expect: pass|memory|cpu_time
compile("\n".join("a%d = %d" % (i, i) for i in range(10_000)), "x", "exec")
print("contained")
