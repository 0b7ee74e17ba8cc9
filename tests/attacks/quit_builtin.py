# expect: pass
print("contained")
quit()
print("ESCAPED")
