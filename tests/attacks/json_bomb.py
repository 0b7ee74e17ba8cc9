# expect: pass
import json
try:
    json.loads("[" * 10 ** 6)
    print("ESCAPED")
except (ValueError, RecursionError, MemoryError):
    print("contained")
