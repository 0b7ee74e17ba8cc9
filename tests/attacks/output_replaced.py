# expect: wrong_answer
import sys
sys.stdout = None
print("contained")
