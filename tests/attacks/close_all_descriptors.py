# expect: runtime_error|wrong_answer|killed
import os
os.closerange(0, 1024)
print("contained")
