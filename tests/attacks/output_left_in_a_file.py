# expect: pass
# cases: 3
f = open(1, 'w')
print('contained' if int(input()) >= 7 else 'lost', file=f)
