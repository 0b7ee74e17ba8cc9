# expect: pass
# cases: 3
input = open(0).readline
print('contained' if int(input()) >= 7 else 'lost')
