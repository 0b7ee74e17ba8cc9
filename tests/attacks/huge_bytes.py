# expect: memory
bytearray(10 ** 12)
