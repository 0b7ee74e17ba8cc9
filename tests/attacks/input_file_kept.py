# expect: pass
# cases: 3
f = open(0)
print('contained' if int(f.readline()) >= 7 else 'lost')
