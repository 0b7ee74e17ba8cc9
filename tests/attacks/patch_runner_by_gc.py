# expect: any
import gc
for thing in gc.get_objects():
    if type(thing).__name__ == "Session":
        type(thing).case = lambda self, code: b"D\0\0\0\0"
print("forged")
