# expect: pass
# cases: 3
print('contained' if '1'.encode('utf-16').decode('utf-16') == '1'.encode('cp1252').decode() else 'lost')
