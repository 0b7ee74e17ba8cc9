# expect: pass
import ast
try:
    ast.literal_eval("-" * 10 ** 5 + "1")
    print("ESCAPED")
except (ValueError, RecursionError, MemoryError, SyntaxError):
    print("contained")
