# expect: pass
nested = ()
for _ in range(10 ** 5):
    nested = (nested,)
del nested
print("contained")
