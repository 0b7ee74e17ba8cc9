# expect: wrong_answer
import sys
sys.stdout.buffer.write(b"\xff\xfe")
